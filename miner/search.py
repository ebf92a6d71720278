"""Exact top-k by a score that is the same number on every machine.

A float32 matrix product rounds differently with another BLAS, thread count or block size, so its scores only *propose*
candidates; the score itself is canonical (`miner.scores`), and equal scores are ordered by id. That the candidates hold
the k best is proved, per query, by a bound on the score of whatever was not proposed. Where that does not prove it
(ties, near ties), the search goes deeper, and at last through the whole gallery in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.index import Index
from miner.scores import norms, similarities, similarities_by_query

__all__ = ["SLACK", "Excluded", "Gallery", "Hits", "Searcher", "float32_error"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Excluded = tuple[Rows, Rows]

SLACK = 16  # proposed beyond what is wanted, so that the cut can be proved
_SWEEP = 1 << 23  # float64 scores of a sweep held at once: 64 MiB
_STEP = 1 << 21  # elements of the gallery converted at once in a sweep


def float32_error(length: npt.NDArray[np.float64], max_norm: float, dim: int) -> npt.NDArray[np.float64]:
    """Bound on |float32 product, summed in any order - the score|, per query of that `length`.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1: |fl(x.y) - x.y| <= n u / (1 - n u) *
    |x|.|y|. The last term: flushed subnormals.
    """
    terms = dim + 8
    return length * (max_norm * terms * 2.0**-24 * 1.01) + terms * 2.0**-125


@dataclass(frozen=True)
class Hits:
    """Per query the best rows, best first: `rows` (n, k) int32, -1 beyond what exists; `scores` (n, k), nan there."""

    rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, queries: int, k: int) -> Hits:
        return cls(np.full((queries, k), -1, np.int32), np.full((queries, k), np.nan, np.float32))


class Gallery:
    """What is searched: `vectors` (rows, dim) float32 or float16, none longer than `max_norm`.

    `place[row]` is the row's position in id order and decides ties.
    """

    def __init__(self, vectors: Vectors, place: Rows, max_norm: float, threads: int = 1) -> None:
        self.vectors, self.place, self.max_norm, self.threads = vectors, place, max_norm, threads
        self.size, self.dim = vectors.shape

    def lengths(self, queries: Vectors) -> npt.NDArray[np.float64]:
        """Norms of queries (n, dim). Raises BadInput for another dim, and where a score could overflow."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise BadInput(
                f"queries have shape {queries.shape}, but the gallery's vectors have dim {self.dim}; "
                "both sides must come from one model."
            )
        length = norms(queries)
        if float(length.max(initial=0.0)) * self.max_norm > 1e37:
            raise BadInput("the vectors are so long that a similarity overflows float32; scale them down.")
        return length

    def ranked(
        self,
        queries: Vectors,
        k: int,
        rows: npt.NDArray[np.integer[Any]],
        ceiling: npt.NDArray[np.float64],
        excluded: Excluded,
    ) -> Hits:
        """The k best rows per query, never an `excluded` one, given a proposal for each; see `settle`."""
        length = self.lengths(queries)
        hits = Hits.empty(len(queries), k)
        some = np.flatnonzero(np.diff(excluded[0]) < self.size)
        unproved = self.settle(queries, length, some, rows[some], ceiling[some], excluded, hits)
        self.sweep(queries, length, unproved, excluded, hits)
        return hits

    def settle(
        self,
        queries: Vectors,
        length: npt.NDArray[np.float64],
        some: Rows,
        rows: npt.NDArray[np.integer[Any]],
        ceiling: npt.NDArray[np.float64],
        excluded: Excluded,
        hits: Hits,
        raw: npt.NDArray[np.float32] | None = None,
    ) -> Rows:
        """Rank the rows proposed for `some` of the queries; returns those of them for which that proves nothing.

        `rows` (len(some), width) are -1 in empty slots; nothing that was not proposed scores above `ceiling`
        (len(some),), or there is nothing else where it is -inf. `raw` are float32 scores of the proposed by somebody
        who may round worse than is allowed: such a proposal proves nothing.
        """
        filled = rows >= 0
        known = np.maximum(rows, 0).astype(np.int64)
        lengths = length[some]
        scores = similarities_by_query(queries[some], self.vectors, known, lengths, self.max_norm, self.threads)
        keep = filled & ~_listed(some, rows, excluded)
        ranked = np.where(keep, scores, -np.inf)
        k = hits.rows.shape[1]
        order = np.lexsort((self.place[known], -ranked), axis=-1)[:, :k]
        best = np.take_along_axis(ranked, order, 1)
        free = self.size - np.diff(excluded[0])[some]
        wanted = np.minimum(free, k)
        kept = keep.sum(1)
        # Equality with the ceiling, rounded as scores are, would be a tie with something that was not proposed.
        width = order.shape[1]
        last = best[np.arange(len(some)), np.minimum(wanted, width) - 1]
        proved = (kept == free) | ((kept >= wanted) & (last > ceiling.astype(np.float32)))
        if raw is not None:
            error = 2 * float32_error(lengths, self.max_norm, self.dim)[:, None]
            proved &= (filled & (np.abs(raw.astype(np.float64) - scores) <= error)).all(1)
        found = np.arange(width) < wanted[proved, None]
        hits.rows[some[proved], :width] = np.where(found, np.take_along_axis(known, order, 1)[proved], -1)
        hits.scores[some[proved], :width] = np.where(found, best[proved], np.nan)
        return np.asarray(some[~proved])

    def sweep(
        self, queries: Vectors, length: npt.NDArray[np.float64], some: Rows, excluded: Excluded, hits: Hits
    ) -> None:
        """Settle `some` queries by comparing them with everything."""
        step = max(1, _SWEEP // self.size)
        for start in range(0, len(some), step):
            self._sweep(queries, length, some[start : start + step], excluded, hits)

    def _sweep(
        self, queries: Vectors, length: npt.NDArray[np.float64], some: Rows, excluded: Excluded, hits: Hits
    ) -> None:
        """Compare in float64, and score canonically all that could belong to the k best."""
        wide = queries[some].astype(np.float64)
        products = np.empty((len(some), self.size), dtype=np.float64)
        step = max(1, _STEP // self.dim)
        for start in range(0, self.size, step):
            products[:, start : start + step] = wide @ self.vectors[start : start + step].astype(np.float64).T
        for query, row_scores in zip(some, products, strict=True):
            own = excluded[1][excluded[0][query] : excluded[0][query + 1]]
            row_scores[own] = -np.inf
            wanted = min(self.size - len(own), hits.rows.shape[1])
            if wanted == 0:
                continue
            cut = float(np.partition(row_scores, self.size - wanted)[self.size - wanted])
            # Two float64 dot products of any order, and one float32 rounding, apart.
            margin = 4 * (self.dim + 8) * 2.0**-53 * length[query] * self.max_norm + abs(cut) * 2.0**-22
            rows = np.flatnonzero(row_scores >= cut - margin - 2.0**-148)
            scores = similarities(queries, np.full(len(rows), query), self.vectors, rows, self.threads)
            order = np.lexsort((self.place[rows], -scores))[:wanted]
            hits.rows[query, :wanted], hits.scores[query, :wanted] = rows[order], scores[order]


class Searcher:
    """Finds, for queries, the k best of a gallery that are not excluded; `index` was built from its vectors."""

    def __init__(self, index: Index, gallery: Gallery) -> None:
        if (index.size, index.dim) != gallery.vectors.shape:
            raise BadInput(
                f"the index holds {index.size} vectors of dim {index.dim}, but the gallery has shape "
                f"{gallery.vectors.shape}; build the index from these vectors."
            )
        self.index, self.gallery = index, gallery

    def top(self, queries: Vectors, k: int, excluded: Excluded) -> Hits:
        """The k best rows per query (n, dim), never one of its `excluded` rows = (offsets (n + 1,), sorted rows)."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        length = self.gallery.lengths(queries)
        hits = Hits.empty(len(queries), k)
        count = np.diff(excluded[0])
        pending = np.flatnonzero(count < self.gallery.size)
        for depth in self._depths(k, count):
            if len(pending):
                pending = self._propose(queries, length, pending, depth, excluded, hits)
        self.gallery.sweep(queries, length, pending, excluded, hits)
        return hits

    def _depths(self, k: int, num_excluded: Rows) -> Iterator[int]:
        """How deep to ask the index: enough for nine queries of ten, then four times that."""
        typical = k + int(np.quantile(num_excluded, 0.9)) + SLACK if len(num_excluded) else 0
        for depth in (min(typical, self.index.size), min(4 * typical, self.index.size)):
            if self.index.exact and 0 < depth <= self.index.max_depth:
                yield depth

    def _propose(
        self,
        queries: Vectors,
        length: npt.NDArray[np.float64],
        some: Rows,
        depth: int,
        excluded: Excluded,
        hits: Hits,
    ) -> Rows:
        """Settle what the `depth` best by the index prove; returns the queries they do not."""
        raw, rows = self.index.search(queries[some], depth)
        # Nothing that was not fetched scores above the last fetched raw score plus the error.
        ceiling = raw[:, -1].astype(np.float64) + float32_error(length[some], self.gallery.max_norm, self.gallery.dim)
        return self.gallery.settle(queries, length, some, rows, ceiling, excluded, hits, raw)


def _listed(
    some: Rows, rows: npt.NDArray[np.integer[Any]], excluded: Excluded, block: int = 1 << 22
) -> npt.NDArray[np.bool_]:
    """Whether `rows[i, j]` is excluded for query `some[i]`: booleans like `rows`."""
    offsets, listed = excluded
    counts = np.diff(offsets)[some]
    before = np.cumsum(counts) - counts
    at = np.repeat(np.arange(len(some)), counts)
    own = listed[np.repeat(offsets[some] - before, counts) + np.arange(len(at))]
    found = np.zeros(rows.shape, dtype=bool)
    step = max(1, block // max(1, rows.shape[1]))
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        which, place = np.nonzero(rows[at[part]] == own[part, None])
        found[at[part][which], place] = True
    return found
