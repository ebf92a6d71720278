"""Hinges over offline negatives: the terms that AOQ adds to an in-batch loss."""

from __future__ import annotations

from torch import Tensor, relu

from trainer.similarities import Mask, Offline, Similarities

__all__ = ["hinges"]


def hinges(similarities: Similarities, margin: float, mask: Mask, *, quintuplet: bool) -> dict[str, Tensor]:
    """(P,) each: "offline_text" and "offline_image"; with `quintuplet` also "negatives" (c_1) and "partners" (c_2).

    An item without an offline negative adds none of its terms; c_1 and c_2 need both, and vanish where their two ends
    happen to be a true pair, unless `mask` is "diagonal": the published code pushes such a pair apart.
    """
    offline, positive = similarities.offline, similarities.positive
    assert offline is not None, "a loss over offline negatives was given none"
    found = {
        "offline_text": relu(margin + offline.text - positive) * offline.has_text,
        "offline_image": relu(margin + offline.image - positive) * offline.has_image,
    }
    if quintuplet:
        negatives, partners = _comparable(offline, mask)
        found["negatives"] = relu(margin + offline.negatives - positive) * negatives
        found["partners"] = relu(margin + offline.partners - positive) * partners
    return found


def _comparable(offline: Offline, mask: Mask) -> tuple[Tensor, Tensor]:
    """Whether c_1 and c_2 of each pair count, (P,) bool each."""
    both = offline.has_text & offline.has_image
    if mask == "diagonal":
        return both, both
    return both & ~offline.true_negatives, both & ~offline.true_partners
