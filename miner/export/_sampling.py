"""Which of an anchor's negatives are exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.ranks import Law, drawn_sets

__all__ = ["Drawn", "Sampling"]


@dataclass(frozen=True)
class Drawn:
    """What is exported of some anchors, in id order: as in a `NegativeBlock`, and `ranks` (a, count) in the table."""

    anchor_rows: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int32]
    ranks: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    lowest_positive: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.anchor_rows)

    def take(self, anchors: Any) -> Drawn:
        """Some of the anchors, by a slice or a mask."""
        return Drawn(
            self.anchor_rows[anchors],
            self.negatives[anchors],
            self.ranks[anchors],
            self.scores[anchors],
            self.lowest_positive[anchors],
        )


@dataclass(frozen=True)
class Sampling:
    """Draw by `law` from the `pool` hardest [all if None] after the first `skip`, which are passed over.

    The same `seed` draws the same from the same table, however it is stored and read.
    """

    law: Law = "top"
    pool: int | None = None
    skip: int = 0
    seed: int = 0

    def depth(self, k: int, count: int | None) -> int:
        """How many of a table's k ranks are looked at to draw `count`, or all there are."""
        pool = count if self.law == "top" else self.pool
        return k if pool is None else min(self.skip + pool, k)

    def start(self) -> np.random.Generator:
        """What `drawn` takes, at the first anchor."""
        return np.random.default_rng(self.seed)

    def drawn(self, block: NegativeBlock, count: int, random: np.random.Generator) -> Drawn:
        """At most `count` negatives of every anchor, hardest first. Blocks come in id order, each anchor once."""
        pool = np.maximum((block.negatives >= 0).sum(1) - self.skip, 0)
        scores = block.scores[:, self.skip :]
        numbers = random.random(scores.shape)
        chosen = drawn_sets(self.law, scores, block.lowest_positive, pool, count, numbers)
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :count]
        there = np.take_along_axis(chosen, order, axis=1)
        return Drawn(
            block.anchor_rows,
            np.where(there, np.take_along_axis(block.negatives, self.skip + order, axis=1), np.int32(-1)),
            self.skip + order,
            np.where(there, np.take_along_axis(scores, order, axis=1), np.float32(np.nan)),
            block.lowest_positive,
        )
