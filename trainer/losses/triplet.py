"""Triplet hinge over in-batch negatives: all of them, or the hardest (VSE++, Faghri et al., BMVC 2018).

    all             sum_i sum_{valid j} [m + S_ij - S_ii]+ + [m + S_ji - S_ii]+
    max violation   sum_i [m + S_{i,t(i)} - S_ii]+ + [m + S_{v(i),i} - S_ii]+

t(i), v(i) are the hardest text of image i and the hardest image of text i in the batch. ("Triplet SH" of Bleeker & de
Rijke, ECIR 2022; it is not FaceNet's semi-hard mining.)
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, relu

from trainer.losses._settings import InBatch
from trainer.similarities import Side, Similarities

__all__ = ["Config", "all_hinges", "hardest_hinge", "parts"]


class Config(InBatch):
    """`max_violation` False: every in-batch negative counts. `mask="diagonal"` is as published."""

    margin: float = Field(default=0.2, ge=0)
    max_violation: bool = True

    @property
    def warm_up(self) -> Config | None:
        return self.all_negatives(self.margin) if self.max_violation else None


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}: hinges against texts (anchor image) and against images (anchor text)."""

    def per_pair(side: Side) -> Tensor:
        return hardest_hinge(side, config.margin) if config.max_violation else all_hinges(side, config.margin).sum(1)

    return similarities.both(config.mask, per_pair, config.reduction)


def hardest_hinge(side: Side, margin: float) -> Tensor:
    """[margin + hardest negative - positive]+ of every pair, (P,); 0 where there is no negative."""
    score, has, _ = side.hardest
    return relu(margin + score - side.positive) * has


def all_hinges(side: Side, margin: float) -> Tensor:
    """[margin + S_ij - positive]+ for every pair and candidate, (P, C); 0 where the candidate is no negative."""
    return relu(margin + side.at_pairs(side.scores) - side.positive[:, None]) * side.at_pairs(side.negative)
