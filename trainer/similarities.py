"""Scores of one training step, seen from both sides: all that a loss knows.

A step compares I images with T texts. The published batches are B pairs, scored B x B with the pairs on the diagonal;
a batch of images with all their captions is I x T and lists its pairs. Either way a loss reads one `Side` per direction
(anchors x candidates) and gives one number per pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Hardest", "Mask", "Offline", "Reduction", "Side", "Similarities", "reduce"]

Mask = Literal["valid", "diagonal"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Offline:
    """Scores of each pair's offline negatives; every field is (P,). Where a `has_` is False the score is meaningless.

    Symbols as in AOQ (arXiv 2003.03669): T- an offline hard text of image I, I- an offline hard image of text T, I* an
    image of T-, T* a text of I-.
    """

    text: Tensor  # a_t = s(I, T-)
    image: Tensor  # a_v = s(I-, T)
    negatives: Tensor  # c_1 = s(I-, T-)
    partners: Tensor  # c_2 = s(I*, T*); zeros for a loss that says it does not need partners
    has_text: Tensor  # whether image I has an offline negative
    has_image: Tensor  # whether text T has one
    true_negatives: Tensor  # whether (I-, T-) happens to be a pair of the dataset
    true_partners: Tensor  # whether (I*, T*) does
    share_text: Tensor | None = None  # size of the pool T- was drawn from, as a share of all negatives of I
    share_image: Tensor | None = None  # the same for I- and T

    def __post_init__(self) -> None:
        for name in ("text", "image", "negatives", "partners"):
            object.__setattr__(self, name, _wide(getattr(self, name)))


class Hardest(NamedTuple):
    """Hardest in-batch negative of every pair's anchor, (P,) each; score 0 without gradient where `has` is False."""

    score: Tensor
    has: Tensor
    candidate: Tensor


@dataclass(frozen=True)
class Side:
    """One direction of a step: A anchors search C candidates; P pairs each ask for their own positive.

    `anchor` and `candidate` place the pairs in `scores`; None means that pair i is the diagonal entry i.
    """

    searched: Literal["text", "image"]
    scores: Tensor  # (A, C)
    negative: Tensor  # (A, C) bool: counts as a negative; what does not, belongs to the anchor or is passed over
    masked: Tensor  # (A, C): scores, and -inf where there is no negative
    positive: Tensor  # (P,)
    anchor: Tensor | None  # (P,)
    candidate: Tensor | None  # (P,)
    offline: Tensor | None  # (P,) score of the pair's offline negative
    has_offline: Tensor | None  # (P,) bool
    offline_share: Tensor | None  # (P,)

    def at_pairs(self, per_anchor: Tensor) -> Tensor:
        """(A, ...) -> (P, ...): each pair reads its anchor's entry."""
        return per_anchor if self.anchor is None else per_anchor.index_select(0, self.anchor)

    @cached_property
    def hardest(self) -> Hardest:
        best, where = self.masked.max(1)
        has = best > float("-inf")
        return Hardest(*(self.at_pairs(values) for values in (best.masked_fill(~has, 0), has, where)))

    @cached_property
    def num_negatives(self) -> Tensor:
        """How many in-batch negatives each pair's anchor has, (P,)."""
        return self.at_pairs(self.negative.sum(1))


@dataclass(frozen=True)
class Similarities:
    """Everything one step compares: I images and T texts, scored all against all, and perhaps offline negatives.

    `scores` is (I, T). `valid` is (I, T) bool: text j does not belong to image i (two captions of one image can meet in
    a batch). `images` and `texts` are the (P,) row and column of every pair; None means that I = T = P and the pairs
    are the diagonal. Half precision is widened to float32, where exponents and weights need it.
    """

    scores: Tensor
    valid: Tensor
    offline: Offline | None = None
    images: Tensor | None = None
    texts: Tensor | None = None

    @cached_property
    def wide(self) -> Tensor:
        """`scores` in float32, or float64 if they are."""
        return _wide(self.scores)

    @cached_property
    def positive(self) -> Tensor:
        """s(I, T) of every pair, (P,)."""
        return self.wide.diagonal() if self.images is None else self.wide[self.images, self.texts]

    def negative_mask(self, mask: Mask) -> Tensor:
        """Which entries of `scores` count as negatives: (I, T) bool. "diagonal": all but the pairs, as published."""
        if mask == "valid":
            return self.valid
        if self.images is None:
            return ~torch.eye(len(self.scores), dtype=torch.bool, device=self.scores.device)
        return torch.ones_like(self.valid).index_put_((self.images, self.texts), self.valid.new_zeros(()))

    def sides(self, mask: Mask) -> tuple[Side, Side]:
        """Image to text, then text to image; made once per mask."""
        if mask not in self._sides:
            self._sides[mask] = self._make_sides(mask)
        return self._sides[mask]

    @cached_property
    def _sides(self) -> dict[Mask, tuple[Side, Side]]:
        return {}

    def _make_sides(self, mask: Mask) -> tuple[Side, Side]:
        negative = self.negative_mask(mask)
        masked = self.wide.masked_fill(~negative, float("-inf"))
        found = self.offline
        return (
            Side(
                "text", self.wide, negative, masked, self.positive, self.images, self.texts,
                *((found.text, found.has_text, found.share_text) if found else (None, None, None)),
            ),
            Side(
                "image", self.wide.T, negative.T, masked.T, self.positive, self.texts, self.images,
                *((found.image, found.has_image, found.share_image) if found else (None, None, None)),
            ),
        )  # fmt: skip

    def both(self, mask: Mask, per_pair: Callable[[Side], Tensor], reduction: Reduction) -> dict[str, Tensor]:
        """{"online_text", "online_image"}: `per_pair` of each direction, (P,), reduced."""
        return {f"online_{side.searched}": reduce(per_pair(side), reduction) for side in self.sides(mask)}


def reduce(per_pair: Tensor, reduction: Reduction) -> Tensor:
    """Sum over the P pairs as published, or their mean (the sum over P, so both directions still add)."""
    return per_pair.sum() if reduction == "sum" else per_pair.sum() / max(len(per_pair), 1)


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
