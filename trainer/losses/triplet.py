"""Triplet hinge over in-batch negatives: all of them, or the hardest (VSE++, Faghri et al., BMVC 2018).

    all             sum_i sum_{valid j} [m + S_ij - S_ii]+ + [m + S_ji - S_ii]+
    max violation   sum_i [m + S_{i,t(i)} - S_ii]+ + [m + S_{v(i),i} - S_ii]+

t(i), v(i) are the hardest text of image i and the hardest image of text i in the batch. ("Triplet SH" of Bleeker & de
Rijke, ECIR 2022; it is not FaceNet's semi-hard mining.)
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainer.losses import Mask, Reduction, Similarities, reduce

__all__ = ["Config", "parts"]


class Config(BaseModel):
    """`mask="diagonal"` and `reduction="sum"` are as published; the default mask spares own captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(default=0.2, ge=0)
    max_violation: bool = True
    mask: Mask = "valid"
    reduction: Reduction = "sum"

    @property
    def needs_tables(self) -> bool:
        return False

    @property
    def needs_partners(self) -> bool:
        return False

    @property
    def online(self) -> Config:
        """What remains while there is no table: itself."""
        return self

    @property
    def online_margin(self) -> float:
        """The margin of the in-batch hinges; a collapsed model's loss freezes at 2 B times it."""
        return self.margin

    @property
    def warm_up(self) -> Config | None:
        """Hardest negatives of an untrained model are noise, so they wait for an epoch or so of all negatives."""
        return self.model_copy(update={"max_violation": False}) if self.max_violation else None


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}: hinges against texts (anchor image) and against images (anchor text)."""
    positive = similarities.positive
    if config.max_violation:
        text, has_text, image, has_image = similarities.hardest(config.mask)
        against_texts = (config.margin + text - positive).clamp(min=0) * has_text
        against_images = (config.margin + image - positive).clamp(min=0) * has_image
    else:
        negative = similarities.negative_mask(config.mask)
        scores = similarities.scores
        against_texts = ((config.margin + scores - positive[:, None]).clamp(min=0) * negative).sum(1)
        against_images = ((config.margin + scores - positive[None, :]).clamp(min=0) * negative).sum(0)
    return {
        "online_text": reduce(against_texts, config.reduction),
        "online_image": reduce(against_images, config.reduction),
    }
