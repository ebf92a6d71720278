"""Adaptive offline quintuplet (Chen, Deng, Luo, ECCV 2020, arXiv 2003.03669).

    p = s(I, T)      a_t = s(I, T-)    a_v = s(I-, T)     offline, common anchor
                     c_1 = s(I-, T-)   c_2 = s(I*, T*)    offline, no common anchor
                     o_t, o_v                             hardest online
    w_t = beta - (a_t - o_t) / alpha                      w_v = beta - (a_v - o_v) / alpha
    L_i = w_t [g1 + o_t - p]+ + w_v [g1 + o_v - p]+
        + [g2 + a_t - p]+ + [g2 + a_v - p]+ + [g2 + c_1 - p]+ + [g2 + c_2 - p]+

g1 = `margin_online`, g2 = `margin_offline`. As published the gradient flows through w, which is not clamped at 0.

Cases the paper leaves open: an item without an offline negative adds none of its terms, and its w is 1 (the plain
triplet); c_1 and c_2 need both negatives, and vanish where their two ends happen to be a true pair, unless
`mask="diagonal"`, the published code, which pushes such a pair apart.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from trainer.losses import _offline
from trainer.losses._settings import Loss
from trainer.losses.triplet import Config as Triplet
from trainer.losses.triplet import hardest_hinge
from trainer.similarities import Side, Similarities, reduce

__all__ = ["Config", "parts"]


class Config(Loss):
    """Published defaults. `OffTri`: w = 1, no c-terms; `OffQuin`: w = 1; `AdapOffQuin`: the whole."""

    form: Literal["OffTri", "OffQuin", "AdapOffQuin"] = "AdapOffQuin"
    margin_online: float = Field(default=0.2, ge=0)
    alpha: float = Field(default=0.3, gt=0)
    beta: float = 1.5
    detach_weights: bool = False
    clamp_weights: bool = False

    @property
    def needs_tables(self) -> bool:
        return True

    @property
    def needs_partners(self) -> bool:
        return self.form != "OffTri"

    @property
    def online(self) -> Triplet:
        """The max-violation triplet."""
        return Triplet(margin=self.margin_online, mask=self.mask, reduction=self.reduction)

    @property
    def warm_up(self) -> Triplet:
        return self.online.all_negatives(self.margin_online)


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """Weighted online hinges and the offline ones: {online,offline}_{text,image}, negatives (c_1), partners (c_2).

    Without offline scores this is the max-violation triplet.
    """

    def per_pair(side: Side) -> Tensor:
        hinge = hardest_hinge(side, config.margin_online)
        return hinge * _weight(config, side) if config.form == "AdapOffQuin" and side.offline is not None else hinge

    found = similarities.both(config.mask, per_pair, config.reduction)
    if similarities.offline is not None:
        quintuplet = config.form != "OffTri"
        hinges = _offline.hinges(similarities, config.margin_offline, config.mask, quintuplet=quintuplet)
        found |= {name: reduce(hinge, config.reduction) for name, hinge in hinges.items()}
    return found


def _weight(config: Config, side: Side) -> Tensor:
    """w = beta - (a - o) / alpha: the more the offline negative already separates, the less the online one counts."""
    assert side.offline is not None
    assert side.has_offline is not None
    weight = config.beta - (side.offline - side.hardest.score) / config.alpha
    if config.detach_weights:
        weight = weight.detach()
    if config.clamp_weights:
        weight = weight.clamp(min=0)
    return weight.where(side.has_offline, weight.new_ones(()))
