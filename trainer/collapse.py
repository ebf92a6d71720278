"""What a step looks like from outside, and whether the model has collapsed to one point.

With hardest negatives the gradient can pull all embeddings together: every score is then the same, every hinge equals
the margin, and the loss stays at 2 B m for ever (Xuan et al., ECCV 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.similarities import Similarities

__all__ = ["OBSERVED", "collapsed", "observe"]

OBSERVED = ("mean_negative", "wrong_share", "hardness", "std")
# Measured on the bundled set: a collapsed model's spread stays below 0.1; one that has just left warm-up passes 0.24
# to 0.3 with hardest negatives about as high as positives, and goes on to learn.
_ALIKE, _NARROW = 0.004, 0.2


@torch.no_grad()
def observe(similarities: Similarities, images: Tensor, texts: Tensor) -> Tensor:
    """(4,) float32, in the order of `OBSERVED`; zeros for a batch without any negative.

    Mean score of the valid off-diagonal entries; share of anchors (both directions) whose hardest negative scores above
    their positive; mean of hardest negative minus positive; mean over dimensions and both sides of the embeddings'
    standard deviation, times sqrt(dim), which is 1 for directions spread evenly. `images` (I, dim) and `texts` (T, dim)
    are the embeddings that were compared.
    """
    hardest = [side.hardest for side in similarities.sides("valid")]
    gap = torch.cat([found.score - similarities.positive for found in hardest])
    has = torch.cat([found.has for found in hardest])
    count = has.sum().clamp(min=1)
    valid = similarities.valid
    spread = torch.stack([side.std(0, unbiased=False).mean() for side in (images, texts)]).mean()
    return torch.stack(
        [
            (similarities.scores * valid).sum() / valid.sum().clamp(min=1),
            ((gap > 0) & has).sum() / count,
            (gap * has).sum() / count,
            spread * images.shape[1] ** 0.5,
        ]
    ).float()


def collapsed(observed: dict[str, float], *, has_warm_up: bool) -> str | None:
    """A sentence when an epoch's means say that the model has collapsed, else None; the same test for every loss.

    The images may sit in one point and the texts in another, so the level of the scores says nothing. `has_warm_up`:
    whether the loss could train longer on all negatives first.
    """
    if not (abs(observed["hardness"]) < _ALIKE and observed["std"] < _NARROW):
        return None
    advice = "Train more warm-up epochs, or lower the learning rate" if has_warm_up else "Lower the learning rate"
    return (
        "the model has collapsed: hardest negatives score like positives "
        f"({observed['hardness']:+.4f} apart; a max-violation loss is frozen at 2 B m), unrelated pairs score "
        f"{observed['mean_negative']:.3f} on average, the spread is {observed['std']:.3f} of 1, and "
        f"{observed['wrong_share']:.0%} of the anchors have a negative above their positive. {advice}."
    )
