"""One file per model; a model encodes images and texts, and says how like an image and a text are.

A model is a module of this package with a frozen `Config` and `build(config, tokenizer, image_shape) -> Encoder`; its
module name is its name on the command line and in a run file. `Config.dim` is the length of its embeddings;
`Config.cross_attention = True` says that it builds a `PairScorer`, `Config.libraries` whose versions, beside torch's,
shape what it computes. Three hooks are optional:

tokenizer(config, texts, min_count) -> Tokenizer    without it: a vocabulary of the training captions
load_pretrained(config, model) -> None              fills a fresh model's weights; without it they are as built
resolve(config, base) -> Config                     writes into the settings what they refer to (a folder's contents);
                                                    a relative path is meant from the folder `base`
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from miner.artifacts.pairs import Side
from trainer import registry
from trainer.text import Tokenizer, Vocabulary

__all__ = [
    "Elements", "Encoder", "PairScorer", "build", "configure", "fitting", "fresh", "models", "name_of", "resolved",
    "tokenizer_of",
]  # fmt: skip


class Encoder(nn.Module):
    """What every model is: two encoders into one space, and the tokenizer its text encoder was built for."""

    tokenizer: Tokenizer
    dim: int
    has_auxiliary_loss: bool = False
    batch_statistics: bool = False  # whether an item's embedding depends on its batch, in training

    def encode_images(self, images: Tensor) -> Tensor:
        """Images as the data format gives them, (B, ...) -> (B, dim) float32, each of length 1."""
        raise NotImplementedError

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, L) int64 and lengths (B,) -> (B, dim) float32, each of length 1. Padding does not contribute.

        Tokens are on the model's device, lengths on the CPU, where packing wants them.
        """
        raise NotImplementedError

    def learning_rate_scale(self, parameter: str) -> float:
        """What the learning rate of a parameter, by name, is multiplied by; 1 unless a model says otherwise."""
        return 1.0

    def auxiliary_loss(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """A loss of the model's own over the pairs of a batch, (B, ...), (B, L) and (B,): a scalar.

        It is added to the loss of retrieval in training, where `has_auxiliary_loss`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Elements:
    """Regions of images or words of texts: `values` (n, length, dim), of which the first `lengths` (n,) count.

    What lies beyond an item's length may be anything, but finite. `gram` (n, length, length) are the products of an
    item's elements with each other, where they are known; see `PairScorer.uses_gram`. All on one device.
    """

    values: Tensor
    lengths: Tensor
    gram: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def mask(self) -> Tensor:
        """(n, length) bool: which elements count."""
        return torch.arange(self.values.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def pooled(self) -> Tensor:
        """(n, dim): the mean of an item's elements, scaled to length 1."""
        kept = self.values.masked_fill(~self.mask[:, :, None], 0)
        return normalize(kept.sum(1) / self.lengths[:, None], dim=1)

    def take(self, rows: Tensor) -> Elements:
        """The items `rows` (m,), as they are padded here."""
        gram = None if self.gram is None else self.gram.index_select(0, rows)
        return Elements(self.values.index_select(0, rows), self.lengths.index_select(0, rows), gram)


class PairScorer(Encoder):
    """A cross-attention model: it compares the regions of an image with the words of a text.

    No index can search such a score. `encode_images` and `encode_texts` give a pooled vector to search with; the score
    itself is `scores`, or `pair_scores` for given pairs.
    """

    def uses_gram(self, side: Side, size: int) -> bool:
        """Whether it helps to compute `Elements.gram` of a side once, in `size` bytes, and to give it along."""
        return False

    def image_elements(self, images: Tensor) -> Elements:
        """Images as the data format gives them, (B, ...) -> regions (B, regions, element_dim) float32."""
        raise NotImplementedError

    def text_elements(self, tokens: Tensor, lengths: Tensor) -> Elements:
        """Tokens (B, L) int64 and lengths (B,) -> words (B, L, element_dim) float32."""
        raise NotImplementedError

    def scores(self, images: Elements, texts: Elements) -> Tensor:
        """Every image with every text: (images, texts) float32. Memory stays within the model's `memory_mib`."""
        raise NotImplementedError

    def pair_scores(self, images: Elements, texts: Elements) -> Tensor:
        """Image i with text i: (n,) float32."""
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        return self.image_elements(images).pooled

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.text_elements(tokens, lengths).pooled


def models() -> list[str]:
    """Names of the models."""
    return registry.names(__name__)


def fitting(image_shape: tuple[int, ...]) -> str:
    """The model to begin with for images of this shape: pictures, a vector per region, or one vector."""
    return {3: "cnn_gru", 2: "vse_inf"}.get(len(image_shape), "vsepp")


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a model. Raises BadInput for an unknown model or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the model whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def resolved(config: Any, base: Path = Path()) -> Any:
    """The settings with what they refer to, from the folder `base` on, written into them.

    Raises BadInput when it is not there.
    """
    resolve = getattr(_module(config), "resolve", None)
    return config if resolve is None else resolve(config, base)


def tokenizer_of(config: Any, texts: Sequence[str], min_count: int) -> Tokenizer:
    """The model's own tokenizer, or a vocabulary of the training captions `texts`."""
    make = getattr(_module(config), "tokenizer", None)
    return Vocabulary.build(texts, min_count) if make is None else cast(Tokenizer, make(config, texts, min_count))


def build(config: Any, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Encoder:
    """A model with weights from torch's generator. Raises BadInput when it does not take such images."""
    return cast(Encoder, _module(config).build(config, tokenizer, image_shape))


def fresh(config: Any, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Encoder:
    """A model to train from the start: as built, or with the pretrained weights that its settings name."""
    model = build(config, tokenizer, image_shape)
    load = getattr(_module(config), "load_pretrained", None)
    if load is not None:
        load(config, model)
    return model


def _module(config: Any) -> ModuleType:
    return sys.modules[type(config).__module__]
