"""Selectively hard negatives (SelHN; Li et al., arXiv 2303.00181).

Where the hardest negative scores almost like the positive, the two gradients of the hinge almost cancel in the
encoders. There the average over all negatives stands in:

    |S_p - S_n| < epsilon    mean_{valid j} [m + S_ij - S_ii]+
    else                     [m + S_n - S_p]+
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from trainer.losses._settings import InBatch
from trainer.losses.triplet import Config as Triplet
from trainer.losses.triplet import all_hinges, hardest_hinge
from trainer.similarities import Side, Similarities

__all__ = ["Config", "parts"]


class Config(InBatch):
    """`epsilon` 0.01 is our choice: scores are cosines. `epsilon` 0 is the max-violation triplet."""

    margin: float = Field(default=0.2, ge=0)
    epsilon: float = Field(default=0.01, ge=0)

    @property
    def warm_up(self) -> Triplet:
        return self.all_negatives(self.margin)


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}."""

    def per_pair(side: Side) -> Tensor:
        average = all_hinges(side, config.margin).sum(1) / side.num_negatives.clamp(min=1)
        vanishing = side.hardest.has & ((side.positive - side.hardest.score).abs() < config.epsilon)
        return average.where(vanishing, hardest_hinge(side, config.margin))

    return similarities.both(config.mask, per_pair, config.reduction)
