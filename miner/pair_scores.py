"""The scores of chosen pairs of items of a folder of vectors, the same numbers as mining gives; memory is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Side
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

    def of_positives(self, side: Side) -> tuple[Rows, npt.NDArray[np.float32]]:
        """(offsets, scores): item r of a side and its positives score `scores[offsets[r]:offsets[r + 1]]`."""
        offsets, positives = self.folder.pairs.positives(side)
        items = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        return offsets, self(side, items, "text" if side == "image" else "image", positives)

    def _vectors(self, side: Side, rows: Rows) -> tuple[npt.NDArray[Any], Rows]:
        """(vectors of the distinct rows, which of them each row is)."""
        raw = self.folder.images if side == "image" else self.folder.texts
        distinct, which = np.unique(rows, return_inverse=True)
        vectors = np.asarray(raw[distinct])
        return (unit(vectors) if self.metric == "cosine" else vectors.astype(np.float32)), which
