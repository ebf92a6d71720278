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
from miner.scores import norms, plain_error, rounded, similarities, similarities_by_query

__all__ = ["SLACK", "Excluded", "Gallery", "Hits", "Searcher", "float32_error"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Excluded = tuple[Rows, Rows]

SLACK = 16  # proposed beyond what is wanted, so that the cut can be proved
_SWEPT = 256  # queries of a sweep at once
_STEP = 1 << 21  # numbers of the gallery, and scores, held at once in a sweep: 16 MiB each


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
        with np.errstate(over="ignore"):  # a ceiling beyond float32 is one that nothing reaches
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
        for start in range(0, len(some), _SWEPT):
            self._sweep(queries, length, some[start : start + _SWEPT], excluded, hits)

    def _sweep(
        self, queries: Vectors, length: npt.NDArray[np.float64], some: Rows, excluded: Excluded, hits: Hits
    ) -> None:
        """Compare in float64 twice: to learn what the k-th best is, and to score all that may reach it."""
        wanted = np.minimum(self.size - np.diff(excluded[0])[some], hits.rows.shape[1])
        depth = int(wanted.max(initial=0))
        if depth == 0:
            return
        wide = queries[some].astype(np.float64)
        best = np.full((len(some), depth), -np.inf)
        for _, products in self._products(wide, some, excluded):
            best = np.concatenate([best, products], axis=1)
            best = np.partition(best, best.shape[1] - depth, axis=1)[:, -depth:]
        best.sort(axis=1)
        cut = best[np.arange(len(some)), depth - np.maximum(wanted, 1)]
        # Two float64 dot products of any order, and one float32 rounding, apart.
        margin = 4 * (self.dim + 8) * 2.0**-53 * length[some] * self.max_norm + np.abs(cut) * 2.0**-22 + 2.0**-148
        edge = np.where(wanted > 0, cut - margin, np.inf)
        error = plain_error(length[some], self.max_norm, self.dim)
        found = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in some]
        for first, products in self._products(wide, some, excluded):
            reached = products >= edge[:, None]
            for at in np.flatnonzero(reached.any(1)):
                rows = np.flatnonzero(reached[at])
                scores, unsure = rounded(products[at, rows], error[at])
                rows += first
                again = rows[unsure]
                scores[unsure] = similarities(queries, np.full(len(again), some[at]), self.vectors, again, self.threads)
                rows, scores = np.concatenate([found[at][0], rows]), np.concatenate([found[at][1], scores])
                found[at] = self._first(rows, scores, int(wanted[at]))
        for query, number, (rows, scores) in zip(some, wanted, found, strict=True):
            order = np.lexsort((self.place[rows], -scores))
            hits.rows[query, :number], hits.scores[query, :number] = rows[order], scores[order]

    def _products(
        self, wide: npt.NDArray[np.float64], some: Rows, excluded: Excluded
    ) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
        """Blocks of the gallery: (first row, float64 products (queries, rows), -inf for what is excluded)."""
        counts = np.diff(excluded[0])[some]
        query = np.repeat(np.arange(len(some)), counts)
        own = excluded[1][np.repeat(excluded[0][some] - (np.cumsum(counts) - counts), counts) + np.arange(len(query))]
        order = np.argsort(own, kind="stable")
        own, query = own[order], query[order]
        step = max(1, _STEP // max(self.dim, len(some)))
        for start in range(0, self.size, step):
            products = wide @ np.asarray(self.vectors[start : start + step]).astype(np.float64).T
            here = slice(*np.searchsorted(own, [start, start + products.shape[1]]))
            products[query[here], own[here] - start] = -np.inf
            yield start, products

    def _first(self, rows: Rows, scores: npt.NDArray[np.float32], number: int) -> tuple[Rows, npt.NDArray[np.float32]]:
        """The `number` best of some rows, ties by place, in any order; without sorting, for all of them may tie."""
        if len(rows) <= number:
            return rows, scores
        least = np.partition(scores, len(rows) - number)[len(rows) - number]
        above, level = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        missing = number - len(above)
        chosen = np.concatenate([above, level[np.argpartition(self.place[rows[level]], missing - 1)[:missing]]])
        return rows[chosen], scores[chosen]


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


def _listed(some: Rows, rows: npt.NDArray[np.integer[Any]], excluded: Excluded) -> npt.NDArray[np.bool_]:
    """Whether `rows[i, j]` is excluded for query `some[i]`: booleans like `rows`."""
    offsets, listed = excluded
    counts = np.diff(offsets)[some]
    at = np.repeat(np.arange(len(some)), counts)
    own = listed[np.repeat(offsets[some] - (np.cumsum(counts) - counts), counts) + np.arange(len(at))].astype(np.int64)
    found = np.zeros(rows.shape, dtype=bool)
    if len(own) <= 4 * len(some):
        which, place = np.nonzero(rows[at] == own[:, None])
        found[at[which], place] = True
    else:  # many each: look up instead
        base = int(max(own.max(), rows.max())) + 2
        keys = np.sort(at * base + own)
        wanted = np.arange(len(some))[:, None] * base + rows
        found = (keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted) & (rows >= 0)
    return found
