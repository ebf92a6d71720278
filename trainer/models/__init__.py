"""One file per model; a model is two towers whose embeddings meet in a dot product.

A model is a module of this package with a frozen `Config` and `build(config, vocabulary, image_shape) -> Encoder`; its
module name is its name on the command line and in a run file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from trainer import registry
from trainer.text import Vocabulary

__all__ = ["Encoder", "build", "configure", "models", "name_of"]


class Encoder(nn.Module):
    """What every model is: two encoders into one space, and the vocabulary its text encoder was built for."""

    vocabulary: Vocabulary
    dim: int

    def encode_images(self, images: Tensor) -> Tensor:
        """Images as the data format gives them, (B, ...) -> (B, dim) float32, each of length 1."""
        raise NotImplementedError

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, L) int64 and lengths (B,) -> (B, dim) float32, each of length 1. Padding does not contribute."""
        raise NotImplementedError


def models() -> list[str]:
    """Names of the models."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a model. Raises BadInput for an unknown model or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the model whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def build(config: Any, vocabulary: Vocabulary, image_shape: tuple[int, ...]) -> Encoder:
    """A model with fresh weights from torch's generator. Raises BadInput when it does not take such images."""
    return cast(Encoder, sys.modules[type(config).__module__].build(config, vocabulary, image_shape))
