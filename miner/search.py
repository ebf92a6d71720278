"""Exact top-k by a score that is the same number on every machine.

A float32 matrix product rounds differently with another BLAS, thread count or block size, so its scores only *propose*
candidates. The score itself is canonical: products in float64 (exact for float32 factors), added in a fixed tree of
elementwise additions, rounded once to float32. Equal scores are ordered by id. That the candidates hold the k best is
proved, per query, by the rounding error bound of a dot product (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., section 3.1): |fl(x.y) - x.y| <= n u / (1 - n u) * |x|.|y|. Where that does not prove it (ties, near ties), the
search goes deeper, and at last through the whole gallery in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.index import Index

__all__ = ["Hits", "Searcher", "norms", "similarities", "unit"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

_CHUNK = 1 << 17  # float64 products held at once: 1 MiB, about a core's cache
_SWEEP = 1 << 23  # float64 scores of a sweep held at once: 64 MiB
_SLACK = 16  # fetched beyond what is wanted, so that the cut can be proved


def _add_up(products: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum over the last axis by halving: the order of additions depends on the length alone. Destroys its input."""
    length = products.shape[-1]
    while length > 1:
        half = (length + 1) // 2
        products[..., : length - half] += products[..., half:length]
        length = half
    return products[..., 0] + 0.0  # no negative zero


def similarities(
    queries: Vectors, query_rows: Rows, vectors: Vectors, rows: Rows, threads: int = 1
) -> npt.NDArray[np.float32]:
    """Canonical score of `queries[query_rows[p]]` with `vectors[rows[p]]` for every p: (len(rows),)."""
    out = np.empty(len(rows), dtype=np.float32)
    step = max(1, _CHUNK // max(1, vectors.shape[1]))

    def score(start: int) -> None:
        at = slice(start, start + step)
        products = vectors[rows[at]].astype(np.float64)
        products *= queries[query_rows[at]]
        out[at] = _add_up(products)

    starts = range(0, len(rows), step)
    if threads == 1 or len(starts) == 1:
        for start in starts:
            score(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(score, starts))
    return out


def norms(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Euclidean norm of every row, canonical as the scores are: (rows,)."""
    out = np.empty(len(vectors), dtype=np.float64)
    step = max(1, _CHUNK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        out[start : start + step] = np.sqrt(_add_up(np.square(vectors[start : start + step].astype(np.float64))))
    return out


def unit(vectors: Vectors) -> npt.NDArray[np.float32]:
    """The rows scaled to length 1, rounded to float32: their inner product is the cosine."""
    out = np.empty(vectors.shape, dtype=np.float32)
    length = norms(vectors)
    step = max(1, _CHUNK // vectors.shape[1])
    for start in range(0, len(vectors), step):
        at = slice(start, start + step)
        out[at] = vectors[at].astype(np.float64) / length[at, None]
    return out


@dataclass(frozen=True)
class Hits:
    """Per query the best rows, best first: `rows` (n, k) int32, -1 beyond what exists; `scores` (n, k), nan there."""

    rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


class Searcher:
    """Finds, for queries, the k best of a gallery that are not excluded.

    `vectors` (rows, dim) float32 or float16 are what `index` was built from; `place[row]` is the row's position in id
    order and decides ties.
    """

    def __init__(self, index: Index, vectors: Vectors, place: Rows, threads: int = 1) -> None:
        if vectors.ndim != 2 or (index.size, index.dim) != vectors.shape:
            raise BadInput(
                f"the index holds {index.size} vectors of dim {index.dim}, but the gallery has shape "
                f"{vectors.shape}; build the index from these vectors."
            )
        self.index, self.vectors, self.place, self.threads = index, vectors, place, threads

    def top(self, queries: Vectors, k: int, excluded: tuple[Rows, Rows]) -> Hits:
        """The k best rows per query (n, dim), never one of its `excluded` rows = (offsets (n + 1,), sorted rows)."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.index.dim:
            raise BadInput(
                f"queries have shape {queries.shape}, but the gallery's vectors have dim {self.index.dim}; "
                "both sides must come from one model."
            )
        length = norms(queries)
        if float(length.max(initial=0.0)) * self.index.max_norm > 1e37:
            raise BadInput("the vectors are so long that a similarity overflows float32; scale them down.")
        offsets = excluded[0]
        hits = Hits(np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), np.nan, np.float32))
        free = self.index.size - np.diff(offsets)
        pending = np.flatnonzero(free > 0)
        for depth in self._depths(k, np.diff(offsets)):
            if len(pending):
                pending = self._propose(queries, length, k, excluded, free, pending, depth, hits)
        for some in self._portions(pending):
            self._sweep(queries, length, k, excluded, free, some, hits)
        return hits

    def _depths(self, k: int, num_excluded: Rows) -> Iterator[int]:
        """How deep to ask the index: enough for nine queries of ten, then four times that."""
        typical = k + int(np.quantile(num_excluded, 0.9)) + _SLACK if len(num_excluded) else 0
        for depth in (min(typical, self.index.size), min(4 * typical, self.index.size)):
            if self.index.exact and 0 < depth <= self.index.max_depth:
                yield depth

    def _propose(
        self,
        queries: Vectors,
        length: npt.NDArray[np.float64],
        k: int,
        excluded: tuple[Rows, Rows],
        free: Rows,
        pending: Rows,
        depth: int,
        hits: Hits,
    ) -> Rows:
        """Settle what the `depth` best by the index prove; returns the queries they do not."""
        raw, rows = self.index.search(queries[pending], depth)
        filled = rows >= 0
        known = np.maximum(rows, 0)
        scores = similarities(queries, np.repeat(pending, depth), self.vectors, known.ravel(), self.threads)
        scores = scores.reshape(rows.shape)
        keep = filled & ~_listed(pending, rows, excluded, self.index.size)
        error = self._error(length[pending])
        # An index that rounds worse than float32 does, or leaves slots empty, proves nothing.
        honest = filled & (np.abs(raw.astype(np.float64) - scores) <= 2 * error[:, None])
        ranked = np.where(keep, scores, -np.inf)
        order = np.lexsort((self.place[known], -ranked), axis=-1)[:, :k]
        best = np.take_along_axis(ranked, order, 1)
        wanted = np.minimum(free[pending], k)
        kept = keep.sum(1)
        # Nothing that was not fetched scores above the last fetched raw score plus the error; equality would be a tie.
        ceiling = (raw[:, -1].astype(np.float64) + error).astype(np.float32)
        width = min(k, depth)
        last = best[np.arange(len(pending)), np.minimum(wanted, width) - 1]
        proved = (kept == free[pending]) | ((kept >= wanted) & (last > ceiling))
        proved &= honest.all(1)
        found = np.arange(width) < wanted[proved, None]
        hits.rows[pending[proved], :width] = np.where(found, np.take_along_axis(rows, order, 1)[proved], -1)
        hits.scores[pending[proved], :width] = np.where(found, best[proved], np.nan)
        return np.asarray(pending[~proved])

    def _error(self, length: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Bound on |float32 score, summed in any order - canonical score|; the last term: flushed subnormals."""
        terms = self.index.dim + 8
        return length * (self.index.max_norm * terms * 2.0**-24 * 1.01) + terms * 2.0**-125

    def _portions(self, pending: Rows) -> Iterator[Rows]:
        step = max(1, _SWEEP // self.index.size)
        for start in range(0, len(pending), step):
            yield pending[start : start + step]

    def _sweep(
        self,
        queries: Vectors,
        length: npt.NDArray[np.float64],
        k: int,
        excluded: tuple[Rows, Rows],
        free: Rows,
        some: Rows,
        hits: Hits,
    ) -> None:
        """Compare with the whole gallery in float64, and score canonically all that could belong to the k best."""
        wide = queries[some].astype(np.float64)
        products = np.empty((len(some), self.index.size), dtype=np.float64)
        step = max(1, 16 * _CHUNK // self.index.dim)
        for start in range(0, self.index.size, step):
            products[:, start : start + step] = wide @ self.vectors[start : start + step].astype(np.float64).T
        for query, row_scores in zip(some, products, strict=True):
            row_scores[excluded[1][excluded[0][query] : excluded[0][query + 1]]] = -np.inf
            wanted = int(min(free[query], k))
            cut = float(np.partition(row_scores, self.index.size - wanted)[self.index.size - wanted])
            # Two float64 dot products of any order, and one float32 rounding, apart.
            margin = 4 * (self.index.dim + 8) * 2.0**-53 * length[query] * self.index.max_norm + abs(cut) * 2.0**-22
            rows = np.flatnonzero(row_scores >= cut - margin - 2.0**-148)
            scores = similarities(queries, np.full(len(rows), query), self.vectors, rows, self.threads)
            order = np.lexsort((self.place[rows], -scores))[:wanted]
            hits.rows[query, :wanted], hits.scores[query, :wanted] = rows[order], scores[order]


def _listed(queries: Rows, rows: Rows, excluded: tuple[Rows, Rows], size: int) -> npt.NDArray[np.bool_]:
    """Whether `rows[i, j]` is excluded for query `queries[i]`: booleans like `rows`."""
    offsets, listed = excluded
    if not len(listed):
        return np.zeros(rows.shape, dtype=bool)
    codes = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * size + listed
    wanted = queries[:, None] * size + rows
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.asarray(codes[place] == wanted)
