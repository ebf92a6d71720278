"""Rows of a `.npy` file, read from the file when they are asked for.

Not through a memory map: every page of it that was touched counts as resident memory of the process, so a training
would grow to the size of the file. What is read here stays in the system's cache alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.npy import map_npy

__all__ = ["Npy", "Rows", "check"]


@dataclass(frozen=True)
class Npy:
    """A `.npy` file of float16 or float32 vectors: where its data start and what they are."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def open(cls, path: Path, ndims: tuple[int, ...] = (2, 3)) -> Npy:
        """Read the header. Raises BadInput for what is no array of that kind, or not as long as it says."""
        mapped: Any = map_npy(path, ndims)
        if mapped.dtype not in (np.float16, np.float32):
            raise BadInput(
                f"{path}: dtype {mapped.dtype}; image vectors must be float16 or float32: convert with astype."
            )
        if not mapped.flags.c_contiguous:
            raise BadInput(f"{path}: stored column by column; save numpy.ascontiguousarray of it.")
        return cls(path, mapped.shape, mapped.dtype, mapped.offset)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """(rows, ...) in the order asked for; each is read once, neighbours together. Raises BadInput when cut."""
        wanted, place = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if len(wanted) == 0:
            return found
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        edges = [0, *(np.flatnonzero(np.diff(wanted) != 1) + 1).tolist(), len(wanted)]
        runs = [
            (self.offset + int(wanted[start]) * row_bytes, start * row_bytes, (stop - start) * row_bytes)
            for start, stop in pairwise(edges)
        ]
        buffer = found.reshape(-1).view(np.uint8).data
        with open(self.path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                # The disk may fetch all runs at the same time, rather than one after the other.
                for at, _, size in runs:
                    os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_WILLNEED)
            for at, start, size in runs:
                file.seek(at)
                end = start + size
                while start < end:
                    got = file.readinto(buffer[start:end])
                    if not got:
                        raise BadInput(f"{self.path}: cut since it was opened; write it again.")
                    start += got
        return found if np.array_equal(place, np.arange(len(wanted))) else found[place]


@dataclass(frozen=True)
class Rows:
    """Some rows of a file of vectors, checked whenever they are read.

    `verify` hashes a file that a manifest lists, and raises DamagedArtifact; a file of anybody's own is not checked.
    """

    file: Npy
    rows: npt.NDArray[np.int64]
    verify: Callable[[], object] | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.file.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.file.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[Any]:
        wanted = self.rows[rows]
        values = self.file.read(wanted)
        check(values, lambda place: f"{self.file.path}: row {int(wanted[place])}")
        return values


def check(values: npt.NDArray[Any], where: Callable[[int], str]) -> None:
    """Raise BadInput for the first of `values`, (n, ...), that holds NaN or infinity, or only zeros."""
    flat = values.reshape(len(values), prod(values.shape[1:]))
    # One pass without temporary arrays: a square sum tells the rows that need a closer look.
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float32)
    for place in np.flatnonzero(~np.isfinite(squares) | (squares == 0)).tolist():
        if not np.isfinite(flat[place]).all():
            raise BadInput(f"{where(place)} holds NaN or infinity; fix the vector or leave the image out.")
        if not flat[place].any():
            raise BadInput(f"{where(place)} holds only zeros; fix the vector or leave the image out.")
