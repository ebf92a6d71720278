"""One file per family of losses; every loss takes the same `Similarities` and gives named parts that add up to it.

A loss is a module of this package with

- a frozen `Config` whose properties tell `fit` and the loop what it needs: `needs_tables` (does it use offline
  negatives; then it has `h_t`, `h_v`, `ranks`), `needs_partners` (and c_2?), `online_margin`, `online` (the `Config` of
  what it is while there is no table yet) and `warm_up` (the all-negatives triplet `Config` that stands in for it during
  the first epochs, or None);
- `parts(config, similarities) -> dict[str, Tensor]`, scalars whose sum is the loss.

Its module name is its name on the command line and in a run file. A loss sees scores only, so a model that scores pairs
by cross-attention can use any of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from trainer import registry

__all__ = ["Mask", "Offline", "Reduction", "Similarities", "configure", "losses", "name_of", "parts", "reduce"]

Mask = Literal["valid", "diagonal"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Offline:
    """Scores of each pair's offline negatives; every field is (B,). Where a `has_` is False the score is meaningless.

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


@dataclass(frozen=True)
class Similarities:
    """Everything one step compares: B pairs, scored all against all, and perhaps offline negatives.

    `scores` is (B, B): image i with text j, the pairs themselves on the diagonal. `valid` is (B, B) bool: text j does
    not belong to image i (two captions of one image can meet in a batch).
    """

    scores: Tensor
    valid: Tensor
    offline: Offline | None = None

    @cached_property
    def positive(self) -> Tensor:
        """s(I, T) of every pair, (B,)."""
        return self.scores.diagonal()

    def negative_mask(self, mask: Mask) -> Tensor:
        """Which entries of `scores` count as negatives: (B, B) bool. "diagonal" is what the published codes do."""
        if mask == "valid":
            return self.valid
        return ~torch.eye(len(self.scores), dtype=torch.bool, device=self.scores.device)

    def hardest(self, mask: Mask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(o_t, has_t, o_v, has_v), each (B,): the hardest text of each image, the hardest image of each text.

        Where the batch holds no negative of an item its `has` is False and its score 0, without gradient.
        """
        negative = self.negative_mask(mask)
        masked = self.scores.masked_fill(~negative, float("-inf"))
        has_text, has_image = negative.any(1), negative.any(0)
        text = masked.max(1).values.masked_fill(~has_text, 0)
        image = masked.max(0).values.masked_fill(~has_image, 0)
        return text, has_text, image, has_image


def reduce(per_pair: Tensor, reduction: Reduction) -> Tensor:
    """Sum over the B pairs as published, or their mean (the sum over B, so both directions still add)."""
    return per_pair.sum() if reduction == "sum" else per_pair.sum() / max(len(per_pair), 1)


def losses() -> list[str]:
    """Names of the losses."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a loss. Raises BadInput for an unknown loss or setting."""
    return registry.configure(__name__, name, settings or {})


def name_of(config: Any) -> str:
    """Name of the loss whose `Config` this is."""
    return type(config).__module__.rpartition(".")[2]


def parts(config: Any, similarities: Similarities) -> dict[str, Tensor]:
    """Named scalars that add up to the loss which `config`, some loss's `Config`, describes."""
    return cast(dict[str, Tensor], sys.modules[type(config).__module__].parts(config, similarities))
