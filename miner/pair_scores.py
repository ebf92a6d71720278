"""The scores of chosen pairs of items of a folder of vectors, the same numbers as mining gives; memory is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction, Side, Within, sides
from miner.folder import Folder
from miner.scores import similarities, unit

__all__ = ["PairScores"]

Rows = npt.NDArray[np.int64]
_AT_ONCE = 1 << 14  # pairs whose vectors are held


@dataclass(frozen=True)
class PairScores:
    """`scores("image", a, "text", b)` (n,): of image a[i] with text b[i], rows of the folder's pairs."""

    folder: Folder
    metric: str

    def __call__(self, side: Side, rows: Rows, other: Side, other_rows: Rows) -> npt.NDArray[np.float32]:
        found = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            at = slice(start, start + _AT_ONCE)
            queries, query = self._vectors(side, rows[at])
            vectors, row = self._vectors(other, other_rows[at])
            found[at] = similarities(queries, query, vectors, row)
        return found

    def of_positives(self, direction: Direction | Within) -> tuple[Rows, npt.NDArray[np.float32]]:
        """(offsets, scores): anchor r and its positives score `scores[offsets[r]:offsets[r + 1]]`. An item is no
        positive of its own, so that of i2i and t2t there may be none."""
        anchors, gallery = sides(direction)
        offsets, positives = self.folder.pairs.positives_of(direction)
        items = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        if anchors == gallery:
            others = positives != items
            items, positives, offsets = items[others], positives[others], offsets - np.arange(len(offsets))
        return offsets, self(anchors, items, gallery, positives)

    def _vectors(self, side: Side, rows: Rows) -> tuple[npt.NDArray[Any], Rows]:
        """(vectors of the distinct rows, which of them each row is)."""
        raw = self.folder.images if side == "image" else self.folder.texts
        distinct, which = np.unique(rows, return_inverse=True)
        vectors = np.asarray(raw[distinct])
        return (unit(vectors) if self.metric == "cosine" else vectors.astype(np.float32)), which
