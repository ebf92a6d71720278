"""Exhaustive inner product: every query is compared with every vector, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.index import _faiss
from miner.index._grown import reserve

__all__ = ["Config", "Flat", "build", "loads", "read"]

_BLOCK = 65536


@dataclass(frozen=True)
class Config:
    """A flat index has no settings."""


class Flat:
    """FAISS IndexFlatIP on the CPU, or on the first GPU where there is one (`device` says which)."""

    kind = "flat"
    exact = True

    def __init__(self, index: Any) -> None:
        self._cpu = index
        self.size, self.dim = int(index.ntotal), int(index.d)
        self._placed = _faiss.placed(index)
        self.device, self.note = self._placed.device, self._placed.note
        self.max_depth = min(self.size, _faiss.MAX_GPU_DEPTH) if self.device == "gpu" else self.size

    @cached_property
    def max_norm(self) -> float:
        vectors = _faiss.faiss().rev_swig_ptr(self._cpu.get_xb(), self.size * self.dim).reshape(self.size, self.dim)
        squares = (
            np.square(vectors[at : at + _BLOCK], dtype=np.float64).sum(1).max() for at in range(0, self.size, _BLOCK)
        )
        return float(np.sqrt(max(squares)))

    @property
    def about(self) -> dict[str, Any]:
        return {}

    def search(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        assert 0 < depth <= self.max_depth
        scores, rows = self._placed.index.search(np.ascontiguousarray(queries, dtype=np.float32), depth)
        return scores, rows

    def dumps(self) -> bytes:
        return bytes(_faiss.faiss().serialize_index(self._cpu))

    def write(self, path: Path) -> None:
        _faiss.write(self._cpu, path)


def build(vectors: npt.NDArray[np.floating[Any]], config: Config) -> Flat:
    """Index (rows, dim) vectors of any float dtype, converted block by block."""
    del config
    index = _faiss.faiss().IndexFlatIP(int(vectors.shape[1]))
    reserve(index, len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK], dtype=np.float32))
    return Flat(index)


def loads(data: bytes) -> Flat:
    """The inverse of `Flat.dumps`, for bytes that were verified."""
    return _checked(_faiss.faiss().deserialize_index(np.frombuffer(data, dtype=np.uint8)))


def read(path: Path, about: Mapping[str, Any]) -> Flat:
    """The inverse of `Flat.write`, for a file that was verified."""
    del about
    return _checked(_faiss.faiss().read_index(str(path)))


def _checked(index: Any) -> Flat:
    if type(index).__name__ not in ("IndexFlat", "IndexFlatIP"):
        raise BadInput(f"a flat index was expected, but these bytes hold a {type(index).__name__}; build it again.")
    return Flat(index)
