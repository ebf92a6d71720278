"""SCAN (Lee et al., ECCV 2018, arXiv 1803.08024): stacked cross-attention of an image's regions and a text's words.

t2i: each word attends to the regions, i2t: each region to the words. With queries q and contexts k, S = k.q:

    A = l2norm over the queries of LeakyReLU(S, 0.1)      a = softmax over the context of lambda_softmax A
    r_q = cos(q, sum_k a_k k)                             score = (1 / lambda_lse) log sum_q e^(lambda_lse r_q)

The published ensembles average the scores of two models, one per direction; `attention = "both"` averages the two
scores of one model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from miner.artifacts.pairs import Direction
from trainer.models._attention import Pooling, RawNorm, View, attention, cosines, pooled
from trainer.models._cross import CrossAttention, Settings
from trainer.models._towers import region_dim
from trainer.text import Tokenizer

__all__ = ["Config", "Scan", "build"]

_SOFTMAX: dict[Direction, float] = {"t2i": 9, "i2t": 4}
_LSE: dict[Direction, float] = {"t2i": 6, "i2t": 5}


class Config(Settings):
    """`lambda_softmax` None is 9 for t2i and 4 for i2t, `lambda_lse` None 6 and 5 (published for COCO, i2t: 20).

    `raw_norm` is what is done to the products before the softmax: see `_attention.attention`.
    """

    attention: Literal["t2i", "i2t", "both"] = "t2i"
    lambda_softmax: float | None = Field(default=None, gt=0)
    raw_norm: RawNorm = "clipped_l2norm"
    pooling: Pooling = "logsumexp"
    lambda_lse: float | None = Field(default=None, gt=0)


class Scan(CrossAttention):
    """The score is at most 1 with pooling "mean" or "max", 1 + log(queries) / lambda_lse with "logsumexp"."""

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__(config, tokenizer, image_dim)
        self.config = config

    @property
    def directions(self) -> tuple[Direction, ...]:
        return ("t2i", "i2t") if self.config.attention == "both" else (self.config.attention,)

    def compare(self, direction: Direction, view: View) -> Tensor:
        config = self.config
        weights = attention(view, config.raw_norm, config.lambda_softmax or _SOFTMAX[direction])
        scores = pooled(view, cosines(view, weights), config.pooling, config.lambda_lse or _LSE[direction])
        return scores / len(self.directions)


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Scan:
    """Raises BadInput unless an image is (dim,) or (regions, dim)."""
    return Scan(config, tokenizer, region_dim("scan", image_shape))
