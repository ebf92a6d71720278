"""Any dual encoder of the user's: `module:function` names a function that makes it.

    # towers.py, in the current folder or anywhere on Python's path
    class Towers(torch.nn.Module):
        def encode_images(self, images): ...          # (B, ...) float32, or uint8 pictures -> (B, dim), length 1
        def encode_texts(self, tokens, lengths): ...  # (B, L) int64, (B,) int64 -> (B, dim), length 1

    def build(tokenizer, image_shape, **settings):    # len(tokenizer): how many tokens there are
        return Towers(...)

    [model]
    name = "custom"
    factory = "towers:build"
    dim = 256
    settings = { width = 64 }

`lengths` are on the CPU, whatever the device of `tokens`; a mask wants `lengths.to(tokens.device)`.

A subclass of `trainer.models.Encoder` may have more: a loss of its own, learning rates by parameter. It gets vectors as
they are stored, float16 or float32. One of `trainer.models.PairScorer` scores pairs itself; then say
`cross_attention = true`.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor, nn

from miner.artifacts.errors import BadInput
from trainer.factory import Factory
from trainer.models import Encoder, PairScorer
from trainer.text import Tokenizer

__all__ = ["Config", "Towers", "build", "resolve"]

log = logging.getLogger(__name__)


class Config(BaseModel):
    """`factory(tokenizer, image_shape, **settings)` makes the model, whose embeddings have `dim` numbers.

    `source` is filled in: the SHA-256 of the factory's file, so that a run notices when it has changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    factory: str = Field(pattern=r"^\w+(\.\w+)*:\w+$")
    dim: int = Field(ge=1)
    settings: dict[str, JsonValue] = {}
    cross_attention: bool = False
    source: str = ""


class Towers(Encoder):
    """A user's module that is no `Encoder`, as one; vectors reach it as float32."""

    module: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def encode_images(self, images: Tensor) -> Tensor:
        encoded: Tensor = self.module.encode_images(images if images.dtype == torch.uint8 else images.float())
        return encoded

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        encoded: Tensor = self.module.encode_texts(tokens, lengths)
        return encoded


def resolve(config: Config, base: Path = Path()) -> Config:
    """The settings with the `source` of today. Raises BadInput when there is no such module."""
    return config.model_copy(update={"source": hashlib.sha256(_factory(config).file.read_bytes()).hexdigest()})


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Encoder:
    """Raises BadInput when there is no such factory, or what it makes does not encode two images and two captions."""
    if config.source and config != resolve(config):
        log.warning(
            "%s has changed since this model was set up; its weights may mean something else.", _factory(config).file
        )
    made = _factory(config)(tokenizer, image_shape, **config.settings)
    if not isinstance(made, nn.Module) or not all(hasattr(made, name) for name in ("encode_images", "encode_texts")):
        raise BadInput(
            f"models custom: {config.factory} returned a {type(made).__name__}, but a torch module with the methods "
            "encode_images(images) and encode_texts(tokens, lengths) was expected."
        )
    model = made if isinstance(made, Encoder) else Towers(made)
    if isinstance(model, PairScorer) != config.cross_attention:
        kind = "a" if isinstance(model, PairScorer) else "no"
        raise BadInput(
            f"models custom: {config.factory} returned {kind} trainer.models.PairScorer, but cross_attention is "
            f"{str(config.cross_attention).lower()}; change one of the two."
        )
    model.tokenizer, model.dim = tokenizer, config.dim
    _probe(model, config, image_shape)
    return model


def _factory(config: Config) -> Factory:
    return Factory(config.factory, "models custom")


def _probe(model: Encoder, config: Config, image_shape: tuple[int, ...]) -> None:
    """Encodes two items a side, without a trace in weights or random numbers, and looks at what comes back."""
    tokens, lengths = (torch.from_numpy(array) for array in model.tokenizer.encode(["one two three", "four"]))
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        images = torch.rand(2, *image_shape)
        images = (images * 255).to(torch.uint8) if len(image_shape) == 3 else images.half()
        with _factory(config).doing(f"encoding two {images.dtype} images of shape {image_shape}"):
            found = {"encode_images": model.encode_images(images)}
        with _factory(config).doing("encoding two captions"):
            found["encode_texts"] = model.encode_texts(tokens, lengths)
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(found, (2, config.dim))
        if isinstance(model, PairScorer):
            with _factory(config).doing("scoring two images with two captions"):
                sides = model.image_elements(images), model.text_elements(tokens, lengths)
                found |= {"scores": model.scores(*sides), "pair_scores": model.pair_scores(*sides)}
            wanted |= {"scores": (2, 2), "pair_scores": (2,)}
    model.train(training)
    for method, values in found.items():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != wanted[method]:
            raise BadInput(
                f"models custom: {method} of {config.factory} gave {shape} for two items, but {wanted[method]} was "
                f"expected with dim = {config.dim}; change the model or the setting."
            )
        if not values.isfinite().all():
            raise BadInput(f"models custom: {method} of {config.factory} gave values that are not finite.")
        if method.startswith("encode_") and not torch.allclose(values.float().norm(dim=1), torch.ones(2), atol=1e-3):
            raise BadInput(
                f"models custom: {method} of {config.factory} gave vectors that are not of length 1; end it with "
                "torch.nn.functional.normalize(vectors, dim=1)."
            )
