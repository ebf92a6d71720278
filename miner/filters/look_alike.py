"""Drops the share of the negatives that look most like the anchor's positives: vectors alone, no threshold to tune.

A caption that also fits an image is worded like that image's captions, and its own image looks like that image: both
can be seen in the model's own space, apart from the score of the pair itself. Where `near-embedding` needs a cosine
that changes from model to model, the bound here is the percentile of the closeness among those that would be negatives
without this rule, the first k of every anchor. So no more than the share of these is dropped, whatever the model and
the gallery. Their closeness is held in memory, 4 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Side
from miner.filters import Context, Judge
from miner.filters._closeness import Closeness, closeness
from miner.filters._quantile import quantile

__all__ = ["Config", "likeness", "prepare"]


@dataclass(frozen=True)
class Config:
    """Dropped where texts * cosine of the texts + images * cosine of the images is above the bound; for these cosines
    see `near-embedding`."""

    share: float = 0.25
    texts: float = 1.0
    images: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share = {self.share}; give the share to drop, above 0 and below 1.")
        if not (np.isfinite([self.texts, self.images]).all() and min(self.texts, self.images) >= 0):
            raise ValueError(f"texts = {self.texts}, images = {self.images}; give weights from 0 on.")
        if self.texts == self.images == 0:
            raise ValueError("texts = images = 0, so nothing is compared; give one of them a weight.")


def likeness(config: Config, context: Context) -> Closeness:
    """Given a block, (anchors, width): what is compared with the bound, nan where there is no candidate."""
    weights: dict[Side, float] = {"text": config.texts, "image": config.images}
    return _together([(closeness(context, side), np.float32(weight)) for side, weight in weights.items() if weight])


def prepare(config: Config, context: Context) -> Judge:
    look = likeness(config, context)

    def pieces() -> Iterator[npt.NDArray[np.float32]]:
        for block in context.survivors(context.k):
            yield look(block)[block.negatives >= 0]

    bound = _bound(list(pieces()), config.share)

    def judge(block: NegativeBlock, rank: int) -> npt.NDArray[np.bool_]:
        return np.asarray(look(block) > bound)

    return judge


def _bound(pieces: list[npt.NDArray[np.float32]], share: float) -> float:
    """What the largest `share` of the values exceed."""
    return quantile(lambda: iter(pieces), 1 - Fraction(str(share)))


def _together(measures: list[tuple[Closeness, np.float32]]) -> Closeness:
    def look(block: NegativeBlock) -> npt.NDArray[np.float32]:
        found = np.zeros(block.negatives.shape, dtype=np.float32)
        for measure, weight in measures:
            found += weight * measure(block)
        return found

    return look
