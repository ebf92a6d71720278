"""BFAN (Liu et al., ACM MM 2019, arXiv 1909.11416): SCAN's attention both ways, then again over what matters.

SCAN's weights a (lambda_softmax 20) of a query are cut to the context elements that `focal` keeps, and what is left is
scaled to sum 1. The score is the mean over the words of cos(word, what it attended to) plus the same mean over the
regions, in [-2, 2].

    equal   keeps i iff a_i is above the mean of a
    prob    keeps i iff sum_j (a_i - a_j) sqrt(a_j) > 0, that is a_i sum_j sqrt(a_j) > sum_j a_j sqrt(a_j)
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from miner.artifacts.pairs import Direction
from trainer.models._attention import Focal, View, attention, cosines, focal, pooled
from trainer.models._cross import CrossAttention, Settings
from trainer.models._towers import region_dim
from trainer.text import Tokenizer

__all__ = ["Bfan", "Config", "build"]


class Config(Settings):
    """Published: both values of `focal`, and an ensemble of the two."""

    lambda_softmax: float = Field(default=20, gt=0)
    focal: Focal = "equal"


class Bfan(CrossAttention):
    """The score is in [-2, 2]."""

    directions = ("t2i", "i2t")

    def __init__(self, config: Config, tokenizer: Tokenizer, image_dim: int) -> None:
        super().__init__(config, tokenizer, image_dim)
        self.config = config

    def compare(self, direction: Direction, view: View) -> Tensor:
        weights = attention(view, "clipped_l2norm", self.config.lambda_softmax)
        return pooled(view, cosines(view, focal(view, weights, self.config.focal)), "mean")


def build(config: Config, tokenizer: Tokenizer, image_shape: tuple[int, ...]) -> Bfan:
    """Raises BadInput unless an image is (dim,) or (regions, dim)."""
    return Bfan(config, tokenizer, region_dim("bfan", image_shape))
