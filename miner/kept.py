"""What a search found, shard by shard: lists of the best, kept in memory or as files with their hashes, and merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.manifest import Draft
from miner.search import Hits

__all__ = ["Kept", "Lists", "merge"]


class Lists:
    """The best of a part of the gallery for some anchors, best first: `positions` (anchors, k) int32 in id order of
    the whole gallery, -1 beyond what there is, and `scores` (anchors, k)."""

    def __init__(self, anchors: range, gallery: range, positions: Any, scores: Any) -> None:
        self.anchors, self.gallery, self.positions, self.scores = anchors, gallery, positions, scores

    def put(self, start: int, hits: Hits) -> None:
        """Fill in what was found for the anchors from the `start`-th on."""
        at = slice(start, start + len(hits.rows))
        self.positions[at] = np.where(hits.rows >= 0, hits.rows + self.gallery.start, -1)
        self.scores[at] = hits.scores

    def cut(self, anchors: range) -> tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        """(where they begin among `anchors`, positions, scores) of those of the anchors that are here, if any are."""
        first, last = max(anchors.start, self.anchors.start), min(anchors.stop, self.anchors.stop)
        if first >= last:
            return None
        at = slice(first - self.anchors.start, last - self.anchors.start)
        return first - anchors.start, np.asarray(self.positions[at]), np.asarray(self.scores[at])


class Kept:
    """The lists of a direction, shard by shard: in memory when there is but one, else as files with their hashes."""

    def __init__(self, draft: Draft | None) -> None:
        self.draft = draft
        self.lists: dict[tuple[int, int], Lists] = {}

    def find(self, anchors: range, gallery: range) -> bool:
        """Whether the lists of a shard are there, whole."""
        key = (anchors.start, gallery.start)
        if key not in self.lists and self.draft is not None:
            paths = [self.draft.part_path(name) for name in _names(*key)]
            if None not in paths:
                opened = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths if path is not None]
                self.lists[key] = Lists(anchors, gallery, *opened)
        return key in self.lists

    @contextmanager
    def room(self, anchors: range, gallery: range, k: int) -> Iterator[Lists]:
        """Lists to fill, kept at the end."""
        key, shape = (anchors.start, gallery.start), (len(anchors), k)
        if self.draft is None:
            self.lists[key] = Lists(anchors, gallery, np.empty(shape, np.int32), np.empty(shape, np.float32))
            yield self.lists[key]
            return
        sources = [self.draft.scratch() for _ in range(2)]
        try:
            made = [
                np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
                for path, kind in zip(sources, ("<i4", "<f4"), strict=True)
            ]
            yield Lists(anchors, gallery, *made)
            for array, path, name in zip(made, sources, _names(*key), strict=True):
                array.flush()
                self.draft.adopt_part(name, path, len(anchors))
        finally:
            for path in sources:
                path.unlink(missing_ok=True)
        assert self.find(anchors, gallery)


def _names(anchors: int, gallery: int) -> tuple[str, str]:
    return f"shard-{anchors}-{gallery}.positions.npy", f"shard-{anchors}-{gallery}.scores.npy"


def merge(
    parts: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]]], k: int, anchors: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The k best of several lists per anchor: highest score first, then lowest position; (positions, scores)."""
    if len(parts) == 1 and parts[0][1].shape == (anchors, k):
        return parts[0][1], parts[0][2]
    columns = np.zeros(anchors, dtype=np.int64)
    for start, positions, _ in parts:
        columns[start : start + len(positions)] += positions.shape[1]
    width = max(k, int(columns.max()))
    all_positions = np.full((anchors, width), -1, np.int32)
    all_scores = np.full((anchors, width), np.nan, np.float32)
    columns[:] = 0
    for start, positions, scores in parts:
        rows = np.arange(start, start + len(positions))[:, None]
        at = columns[rows] + np.arange(positions.shape[1])
        all_positions[rows, at], all_scores[rows, at] = positions, scores
        columns[rows[:, 0]] += positions.shape[1]
    rank = np.where(all_positions >= 0, -all_scores, np.inf)
    order = np.lexsort((all_positions, rank), axis=-1)[:, :k]
    return np.take_along_axis(all_positions, order, 1), np.take_along_axis(all_scores, order, 1)
