"""Selectively contrastive triplet (Xuan et al., "Hard negative examples are hard, but useful", ECCV 2020).

With the hardest negative n of an anchor, positive p:

    S_n > S_p or S_n > 0.8    lambda S_n                      push the negative away, without pulling the positive
    else                      log(1 + exp(10 (S_n - S_p)))

A triplet whose negative lies nearer than its positive has a gradient that can pull all three together; leaving out the
pull keeps the model from collapsing.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from trainer.losses._settings import InBatch
from trainer.losses.triplet import Config as Triplet
from trainer.similarities import Reduction, Side, Similarities

__all__ = ["Config", "parts"]


class Config(InBatch):
    """`weight` is the paper's lambda, `scale` its 10, `too_close` its 0.8. The mean is over pairs; both sides add."""

    reduction: Reduction = "mean"
    weight: float = Field(default=1.0, ge=0)
    scale: float = Field(default=10.0, gt=0)
    too_close: float = 0.8

    @property
    def warm_up(self) -> Triplet:
        return self.all_negatives(margin=0.2)


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}."""

    def per_pair(side: Side) -> Tensor:
        score, has, _ = side.hardest
        hard = (score > side.positive) | (score > config.too_close)
        return has * (config.weight * score).where(hard, softplus(config.scale * (score - side.positive)))

    return similarities.both(config.mask, per_pair, config.reduction)
