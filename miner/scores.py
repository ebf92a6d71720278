"""The score of two vectors, the same number on every machine.

Products in float64 (exact for float32 factors), added in a fixed tree of elementwise additions, rounded once to
float32. A sum in any other order is within a known bound of it (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., section 3.1), so where everything within that bound rounds to one float32, the fastest sum will do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Unit", "norms", "plain_error", "rounded", "similarities", "similarities_by_query", "unit"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

_CHUNK = 1 << 17  # float64 products held at once: 1 MiB, about a core's cache
_PICKED = 20  # so many times slower is picking a vector than passing over one


def _add_up(products: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum over the last axis by halving: the order of additions depends on the length alone. Destroys its input."""
    length = products.shape[-1]
    while length > 1:
        half = (length + 1) // 2
        products[..., : length - half] += products[..., half:length]
        length = half
    return products[..., 0] + 0.0


def similarities(
    queries: Vectors, query_rows: Rows, vectors: Vectors, rows: Rows, threads: int = 1
) -> npt.NDArray[np.float32]:
    """Score of `queries[query_rows[p]]` with `vectors[rows[p]]` for every p: (len(rows),)."""
    out = np.empty(len(rows), dtype=np.float32)
    step = max(1, _CHUNK // max(1, vectors.shape[1]))

    def score(start: int) -> None:
        at = slice(start, start + step)
        products = vectors[rows[at]].astype(np.float64)
        products *= queries[query_rows[at]]
        out[at] = _add_up(products)

    _each(score, range(0, len(rows), step), threads)
    return out


def similarities_by_query(
    queries: Vectors,
    vectors: Vectors,
    rows: npt.NDArray[np.integer[Any]],
    length: npt.NDArray[np.float64],
    max_norm: float,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """The same scores for `vectors[rows[q, i]]` with `queries[q]`: (queries, width), the fast way.

    `length` (queries,) are the queries' norms, `max_norm` is at least that of any vector.
    """
    out = np.empty(rows.shape, dtype=np.float32)
    width, dim = rows.shape[1], vectors.shape[1]
    error = plain_error(length, max_norm, dim)
    # Where much of the vectors is wanted, one product with all of them is faster than picking.
    whole = vectors[:].astype(np.float64).T if _PICKED * width >= len(vectors) and len(queries) >= 64 else None
    step = max(1, 4 * _CHUNK // max(1, width * dim if whole is None else len(vectors)))

    def score(start: int) -> None:
        at = slice(start, start + step)
        wide = queries[at].astype(np.float64)
        if whole is None:
            picked = vectors[rows[at].ravel()].astype(np.float64).reshape(-1, width, dim)
            sums = np.vecdot(picked, wide[:, None, :])
        else:
            sums = np.take_along_axis(wide @ whole, rows[at].astype(np.int64), 1)
        out[at], unsure = rounded(sums, error[at, None])
        query, place = np.nonzero(unsure)
        if len(query):
            again = rows[query + start, place].astype(np.int64)
            out[query + start, place] = similarities(queries, query + start, vectors, again)

    _each(score, range(0, len(rows), step), threads)
    return out


def plain_error(length: npt.NDArray[np.float64], max_norm: float, dim: int) -> npt.NDArray[np.float64]:
    """What a float64 sum in any order may be off from the fixed tree's, for queries of a `length`: the terms of both,
    each with a rounding error of 2^-53 at most, and room to spare."""
    return np.asarray(length * (max_norm * (dim + dim.bit_length() + 8) * 2.0**-53 * 1.01))


def rounded(
    sums: npt.NDArray[np.float64], error: npt.NDArray[np.float64] | float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """(float32 scores, whether each is unsure: within its error there is another float32)."""
    low, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    return low, low.view(np.int32) != high.view(np.int32)


def norms(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Euclidean norm of every row, canonical as the scores are: (rows,)."""
    out = np.empty(len(vectors), dtype=np.float64)
    step = max(1, _CHUNK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        out[start : start + step] = np.sqrt(_add_up(np.square(vectors[start : start + step].astype(np.float64))))
    return out


def unit(vectors: Vectors) -> npt.NDArray[np.float32]:
    """The rows scaled to length 1, rounded to float32: their inner product is the cosine."""
    return Unit(vectors)[:]


class Unit:
    """The rows of `vectors` (rows, dim), scaled to length 1 and rounded to float32 whenever they are read: what is
    memory-mapped needs no second copy. Reads like an array, by a slice or by rows."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, vectors: Vectors, lengths: npt.NDArray[np.float64] | None = None) -> None:
        self.vectors = vectors
        self.lengths = norms(vectors) if lengths is None else lengths

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.vectors), self.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Of the array that it reads like."""
        return int(self.dtype.itemsize * len(self.vectors) * self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, at: slice | Rows) -> npt.NDArray[np.float32]:
        some, lengths = self.vectors[at], self.lengths[at]
        out = np.empty(some.shape, dtype=np.float32)
        step = max(1, _CHUNK // some.shape[1])
        for start in range(0, len(some), step):
            part = slice(start, start + step)
            out[part] = some[part].astype(np.float64) / lengths[part, None]
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def part(self, rows: slice) -> Unit:
        """Some of the rows, not read yet."""
        return Unit(self.vectors[rows], self.lengths[rows])


def _each(work: Any, starts: range, threads: int) -> None:
    if threads == 1 or len(starts) <= 1:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
