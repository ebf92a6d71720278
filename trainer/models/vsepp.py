"""VSE++ on precomputed vectors (Faghri et al., BMVC 2018): a linear map of the image vector, the last state of a GRU.

Image: l2norm -> Linear -> l2norm. Text: Embedding -> one-layer one-way GRU -> state at the last token -> l2norm.
Regions, (regions, dim) per image, are averaged first.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from miner.artifacts.errors import BadInput
from trainer.models import Encoder
from trainer.text import PAD, Tokenizer

__all__ = ["Config", "VsePp", "build"]


class Config(BaseModel):
    """Published: 1024-d space, 300-d words."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int = Field(default=1024, ge=1)
    word_dim: int = Field(default=300, ge=1)


class VsePp(Encoder):
    """Images (B, image_dim) or (B, regions, image_dim) float16/32; texts as tokens."""

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__()
        self.tokenizer, self.dim = tokenizer, config.dim
        self.image_head = nn.Linear(image_dim, config.dim)
        nn.init.xavier_uniform_(self.image_head.weight)
        nn.init.zeros_(self.image_head.bias)
        self.words = nn.Embedding(len(tokenizer), config.word_dim, padding_idx=PAD)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        self.gru = nn.GRU(config.word_dim, config.dim, batch_first=True)

    def encode_images(self, images: Tensor) -> Tensor:
        vectors = images.float()
        if vectors.ndim == 3:
            vectors = vectors.mean(dim=1)
        return normalize(self.image_head(normalize(vectors, dim=1)).float(), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # One-way: the state at the last token has not seen the padding behind it, so nothing needs packing.
        states, _ = self.gru(self.words(tokens))
        rows = torch.arange(len(tokens), device=tokens.device)
        return normalize(states[rows, lengths.to(tokens.device) - 1].float(), dim=1)


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> VsePp:
    """Raises BadInput unless an image is (dim,) or (regions, dim)."""
    if len(image_shape) not in (1, 2):
        raise BadInput(
            f"model vsepp takes vectors of shape (dim,) or (regions, dim), but these images are {image_shape}; "
            "for pictures take the model cnn_gru."
        )
    return VsePp(config, tokenizer, image_shape[-1])
