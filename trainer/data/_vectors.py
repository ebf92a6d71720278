"""Vectors stored one by one, as cells of a table."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from trainer.data._decode import Unreadable, content
from trainer.data._npy import check
from trainer.data._places import Stored

__all__ = ["Vectors"]


class Vectors:
    """An ImageSource of vectors of `shape`, or of the first one's; stored as float64 they are given as float32."""

    def __init__(self, stored_vectors: Stored, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
        self.vectors, self._stored_as = stored_vectors, dtype
        self.dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        if shape is None:
            (first,) = self._contents(np.array([0]))
            shape = (len(first) // dtype.itemsize,)
        self.shape = (len(stored_vectors), *shape)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[Any]:
        rows = np.asarray(rows)
        wanted, parts = prod(self.shape[1:]) * self._stored_as.itemsize, self._contents(rows)
        for place, part in enumerate(parts):
            if len(part) != wanted:
                raise BadInput(
                    f"{self.vectors.named(int(rows[place]))}: a vector of {len(part) // self._stored_as.itemsize} "
                    f"numbers, but the first has shape {self.shape[1:]}; all must have the same shape."
                )
        values = np.frombuffer(b"".join(parts), self._stored_as).reshape(len(rows), *self.shape[1:])
        # A copy, because what frombuffer gives cannot be written to, which torch warns about.
        values = values.astype(self.dtype)
        check(values, lambda place: self.vectors.named(int(rows[place])))
        return values

    def _contents(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        found = []
        for row, one in zip(rows.tolist(), self.vectors.fetch(rows), strict=True):
            try:
                found.append(content(one))
            except Unreadable as why:
                raise BadInput(f"{self.vectors.named(row)}: {why}; every image needs a vector.") from why
        return found
