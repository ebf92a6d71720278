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

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainer.losses import Mask, Offline, Reduction, Similarities, reduce, triplet

__all__ = ["Config", "parts"]


class Config(BaseModel):
    """Published defaults. `OffTri`: w = 1, no c-terms; `OffQuin`: w = 1; `AdapOffQuin`: the whole.

    The offline text's rank is drawn from the first `h_t` of the image's list, the image's from the first `h_v` of the
    text's; `ranks="tied"` lets the two share one draw as published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["OffTri", "OffQuin", "AdapOffQuin"] = "AdapOffQuin"
    margin_online: float = Field(default=0.2, ge=0)
    margin_offline: float = Field(default=0.0, ge=0)
    alpha: float = Field(default=0.3, gt=0)
    beta: float = 1.5
    h_t: int = Field(default=300, ge=1)
    h_v: int = Field(default=60, ge=1)
    ranks: Literal["tied", "untied"] = "tied"
    detach_weights: bool = False
    clamp_weights: bool = False
    mask: Mask = "valid"
    reduction: Reduction = "sum"

    @property
    def needs_tables(self) -> bool:
        return True

    @property
    def online(self) -> triplet.Config:
        """What remains while there is no table: the max-violation triplet."""
        return triplet.Config(margin=self.margin_online, mask=self.mask, reduction=self.reduction)

    @property
    def needs_partners(self) -> bool:
        """Whether c_2 is scored at all: encoding I* and T* is a third of a step."""
        return self.form != "OffTri"

    @property
    def online_margin(self) -> float:
        return self.margin_online

    @property
    def warm_up(self) -> triplet.Config:
        return self.online.model_copy(update={"max_violation": False})


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """Weighted online hinges and the offline ones: {online,offline}_{text,image}, negatives (c_1), partners (c_2).

    Without offline scores this is the max-violation triplet.
    """
    positive, offline = similarities.positive, similarities.offline
    text, has_text, image, has_image = similarities.hardest(config.mask)
    online_text = (config.margin_online + text - positive).clamp(min=0) * has_text
    online_image = (config.margin_online + image - positive).clamp(min=0) * has_image
    if offline is None:
        return {
            "online_text": reduce(online_text, config.reduction),
            "online_image": reduce(online_image, config.reduction),
        }
    if config.form == "AdapOffQuin":
        online_text = online_text * _weight(config, offline.text, text, offline.has_text)
        online_image = online_image * _weight(config, offline.image, image, offline.has_image)
    found = {
        "online_text": online_text,
        "online_image": online_image,
        "offline_text": (config.margin_offline + offline.text - positive).clamp(min=0) * offline.has_text,
        "offline_image": (config.margin_offline + offline.image - positive).clamp(min=0) * offline.has_image,
    }
    if config.form != "OffTri":
        negatives, partners = _comparable(config, offline)
        found["negatives"] = (config.margin_offline + offline.negatives - positive).clamp(min=0) * negatives
        found["partners"] = (config.margin_offline + offline.partners - positive).clamp(min=0) * partners
    return {name: reduce(per_pair, config.reduction) for name, per_pair in found.items()}


def _weight(config: Config, offline: Tensor, online: Tensor, has_offline: Tensor) -> Tensor:
    """w = beta - (a - o) / alpha: the more the offline negative already separates, the less the online one counts."""
    weight = config.beta - (offline - online) / config.alpha
    if config.detach_weights:
        weight = weight.detach()
    if config.clamp_weights:
        weight = weight.clamp(min=0)
    return weight.where(has_offline, weight.new_ones(()))


def _comparable(config: Config, offline: Offline) -> tuple[Tensor, Tensor]:
    """Whether c_1 and c_2 of each pair count, (B,) bool each."""
    both = offline.has_text & offline.has_image
    if config.mask == "diagonal":
        return both, both
    return both & ~offline.true_negatives, both & ~offline.true_partners
