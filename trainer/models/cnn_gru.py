"""A small CNN and a bidirectional GRU for pictures of a few dozen pixels: trains on two CPU cores in minutes.

The CNN normalises over channel groups within one picture, never over the batch: the offline negatives that share a step
with a batch do not shift any statistic, and averaged weights need no recalibration.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from miner.artifacts.errors import BadInput
from trainer.models import Encoder
from trainer.text import PAD, UNKNOWN, Tokenizer

__all__ = ["CnnGru", "Config", "build"]


class Config(BaseModel):
    """`channels` of the stages, each halving the side; `shift`: pictures move by up to that many pixels in training.

    `word_dropout`: share of words that read as unknown in training, so that a caption is learnt from all its words, and
    the unknown words of a new caption mean something.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int = Field(default=256, ge=1)
    channels: tuple[int, ...] = (32, 64, 128, 192)
    word_dim: int = Field(default=128, ge=1)
    hidden: int = Field(default=128, ge=1, description="GRU units per direction")
    text_pooling: Literal["last", "max"] = "max"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=2, ge=0)


class CnnGru(Encoder):
    """Images (B, side, side, 3) uint8; texts as tokens."""

    def __init__(self, config: Config, tokenizer: Tokenizer, side: tuple[int, int]) -> None:
        super().__init__()
        self.tokenizer, self.dim, self.config = tokenizer, config.dim, config
        stages: list[nn.Module] = []
        before = 3
        for channels in config.channels:
            stages += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8 if channels % 8 == 0 else 1, channels),
                nn.ReLU(inplace=True),
            ]
            before = channels
        self.cnn = nn.Sequential(*stages)
        height, width = (_after_stages(size, len(config.channels)) for size in side)
        # Where something is tells a left hand from a right one: flatten the last map instead of averaging it.
        self.image_head = nn.Linear(before * height * width, config.dim)
        self.words = nn.Embedding(len(tokenizer), config.word_dim, padding_idx=PAD)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        self.gru = nn.GRU(config.word_dim, config.hidden, batch_first=True, bidirectional=True)
        self.text_head = nn.Linear(2 * config.hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.image_head, self.text_head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def encode_images(self, images: Tensor) -> Tensor:
        values = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        if self.training and self.config.shift:
            values = _shifted(values, self.config.shift)
        features = self.cnn(values).flatten(1)
        return normalize(self.image_head(self.dropout(features)).float(), dim=1)

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self.training and self.config.word_dropout:
            lost = torch.rand(tokens.shape, device=tokens.device) < self.config.word_dropout
            tokens = tokens.masked_fill(lost & (tokens > UNKNOWN), UNKNOWN)
        words = self.dropout(self.words(tokens))
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        if self.config.text_pooling == "last":
            pooled = torch.cat([last[0], last[1]], dim=1)
        else:
            padded, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, padding_value=float("-inf"))
            pooled = padded.amax(dim=1)
        return normalize(self.text_head(self.dropout(pooled)).float(), dim=1)


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> CnnGru:
    """Raises BadInput unless an image is (height, width, 3)."""
    if len(image_shape) != 3 or image_shape[2] != 3:
        raise BadInput(
            f"model cnn_gru takes pictures of shape (height, width, 3), but these images are {image_shape}; "
            "for precomputed vectors take the model vsepp."
        )
    return CnnGru(config, tokenizer, (image_shape[0], image_shape[1]))


def _after_stages(size: int, stages: int) -> int:
    for _ in range(stages):
        size = (size + 1) // 2
    return size


def _shifted(values: Tensor, reach: int) -> Tensor:
    """Every picture moved by its own offset of -reach..reach pixels each way; the border is repeated outwards."""
    batch, _, height, width = values.shape
    padded = pad(values, (reach,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * reach + 1, (2, batch, 1), device=values.device)
    rows = (torch.arange(height, device=values.device) + offsets[0])[:, :, None]
    columns = (torch.arange(width, device=values.device) + offsets[1])[:, None, :]
    picked = torch.arange(batch, device=values.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[picked, rows, columns]
    return moved.permute(0, 3, 1, 2)
