"""Elements: what a cross-attention model compares, a list of vectors per item, beside the item's one embedding.

    elements-00000.npy ...   float16 or float32, (elements of all rows of the shard, dim), row after row
    lengths-00000.npy ...    int32, (rows of the shard,): how many of them are each row's

They lie in an embeddings artifact, cut into the same shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.embeddings import npy_bytes
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, FileRecord

__all__ = ["ElementLists", "add_element_parts", "element_names"]

Values = npt.NDArray[np.floating[Any]]


def element_names(shard: int) -> tuple[str, str]:
    """Names of a shard's two files: elements, lengths."""
    return f"elements-{shard:05d}.npy", f"lengths-{shard:05d}.npy"


def add_element_parts(draft: Draft, shard: int, values: Values, lengths: npt.NDArray[np.int32]) -> None:
    """Write a shard's elements; `values` (sum of lengths, dim) float16 or float32, `lengths` (rows,)."""
    for name, array in zip(element_names(shard), (values, lengths), strict=True):
        draft.add_part(name, npy_bytes(array), len(array))


@dataclass(frozen=True)
class ElementLists:
    """Elements of one side, memory-mapped: shard by shard `values[s]` (elements, dim) and `offsets[s]` (rows + 1,)."""

    values: tuple[Values, ...]
    offsets: tuple[npt.NDArray[np.int64], ...]
    first_rows: npt.NDArray[np.int64]  # (shards + 1,)

    @classmethod
    def of(cls, values: Values, lengths: npt.NDArray[np.int32]) -> ElementLists:
        """Elements that are in memory, as one shard."""
        return cls._of([(values, lengths)])

    @classmethod
    def open(cls, artifact: Artifact) -> ElementLists:
        """Open and verify. Raises DamagedArtifact; BadInput for embeddings without elements."""
        files: Mapping[str, FileRecord] = artifact.manifest.files
        num_shards = sum(name.startswith("elements-") for name in files)
        if num_shards == 0:
            raise BadInput(
                f"{artifact.where}: these embeddings come without elements, so a cross-attention model cannot score "
                "from them; encode with that model."
            )
        shards = []
        for shard in range(num_shards):
            names = element_names(shard)
            arrays = [np.load(artifact.path(name), mmap_mode="r", allow_pickle=False) for name in names]
            if int(arrays[1].sum(dtype=np.int64)) != len(arrays[0]):
                raise DamagedArtifact(f"{artifact.where}/{names[0]}: {len(arrays[0])} elements, not what lengths say.")
            shards.append((arrays[0], np.asarray(arrays[1])))
        return cls._of(shards)

    @classmethod
    def _of(cls, shards: list[tuple[Values, npt.NDArray[np.int32]]]) -> ElementLists:
        offsets = tuple(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) for _, lengths in shards)
        first = np.concatenate([[0], np.cumsum([len(lengths) for _, lengths in shards])]).astype(np.int64)
        return cls(tuple(values for values, _ in shards), offsets, first)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """(rows,): where in its shard each row begins."""
        return np.concatenate([offsets[:-1] for offsets in self.offsets])

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        """(rows,): how many elements are each row's."""
        return np.concatenate([np.diff(offsets) for offsets in self.offsets])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def dim(self) -> int:
        return int(self.values[0].shape[1])

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many elements each row has, (n,)."""
        return self._lengths[rows]

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[Values, npt.NDArray[np.int64]]:
        """(values (n, longest of these, dim), lengths (n,)); beyond a row's length are elements of its neighbours."""
        shard_of, starts, lengths = self._spans(rows)
        longest = int(lengths.max(initial=1))
        found = np.empty((len(rows), longest, self.dim), dtype=self.values[0].dtype)
        at = starts[:, None] + np.arange(longest)
        # Runs of one shard each: with rows in order, as many as there are shards.
        cuts = [0, *(np.flatnonzero(np.diff(shard_of)) + 1), len(rows)]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                # Beyond the shard's last element that one stands again.
                values = self.values[shard_of[start]]
                np.take(values, at[start:stop], axis=0, mode="clip", out=found[start:stop])
        return found, lengths

    def _spans(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(shard, first element there, length) of every row."""
        shard_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        return shard_of, self._starts[rows], self._lengths[rows]
