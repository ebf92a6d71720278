"""Mining: for every anchor the k nearest of the gallery that are not its positives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.index import Index
from miner.scores import similarities
from miner.search import Excluded, Gallery, Hits, Searcher

__all__ = ["anchored", "block_size", "check_k", "check_rows", "mine", "mine_block", "own_positives"]

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]


def block_size(k: int) -> int:
    """Anchors searched at once: some ten million candidates' worth of memory, and enough for the matrix product."""
    return int(np.clip((1 << 20) // max(k, 1), 64, 4096))


def mine_block(
    queries: Vectors,
    index: Index,
    gallery: Vectors,
    pairs: Pairs,
    direction: Direction | Within,
    k: int,
    anchor_rows: Rows,
    *,
    threads: int = 1,
) -> NegativeBlock:
    """The k hardest negatives of some anchors: `queries` (a, dim) are the vectors of `anchor_rows` (a,), in that order.

    `gallery` (rows, dim) holds the other side's vectors by row of `pairs`, float16 or float32, and `index` was built
    from them. The result depends on the vectors and ids alone, not on the block, the index, the threads or the machine.
    Raises BadInput for shapes that do not fit and a k larger than the gallery.
    """
    _, other = sides(direction)
    check_rows(gallery, pairs, other)
    check_k(pairs, direction, k)
    if len(queries) != len(anchor_rows):
        raise BadInput(f"{len(queries)} vectors for {len(anchor_rows)} anchors; give one each.")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    searched = Gallery(gallery, pairs.places(other), index.max_norm, threads)
    own = own_positives(pairs, direction, anchor_rows)
    hits = Searcher(index, searched).top(queries, k, own)
    return anchored(queries, gallery, direction, anchor_rows, own, hits, threads)


def own_positives(pairs: Pairs, direction: Direction | Within, anchor_rows: Rows) -> Excluded:
    """What some anchors must not get, as (offsets, rows): their positives, and themselves where they are searched."""
    offsets, positives = pairs.positives_of(direction)
    counts = np.diff(offsets)[anchor_rows]
    own = np.zeros(len(anchor_rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=own[1:])
    return own, positives[np.repeat(offsets[anchor_rows] - own[:-1], counts) + np.arange(own[-1])]


def anchored(
    queries: Vectors,
    gallery: Vectors,
    direction: Direction | Within,
    anchor_rows: Rows,
    own: Excluded,
    hits: Hits,
    threads: int = 1,
) -> NegativeBlock:
    """What was found for some anchors, beside what their `own` positives score.

    An item is no positive of its own: the lowest positive of one that has no other is nan (i2i, t2t).
    """
    anchors, other = sides(direction)
    offsets, positives = own
    anchor = np.repeat(np.arange(len(anchor_rows)), np.diff(offsets))
    others = positives != anchor_rows[anchor] if anchors == other else np.ones(len(positives), dtype=bool)
    scores = similarities(queries, anchor[others], gallery, positives[others], threads)
    lowest = np.full(len(anchor_rows), np.inf, dtype=np.float32)
    np.minimum.at(lowest, anchor[others], scores)
    lowest[np.isinf(lowest)] = np.nan
    left = len(gallery) - np.diff(offsets)
    reasons = {
        int(anchor_rows[at]): f"{len(gallery) - left[at]} of the {len(gallery)} {other}s are its positives"
        for at in np.flatnonzero(left < hits.rows.shape[1])
    }
    return NegativeBlock(np.asarray(anchor_rows, dtype=np.int64), hits.rows, hits.scores, lowest, reasons)


def mine(
    vectors: Vectors,
    index: Index,
    gallery: Vectors,
    pairs: Pairs,
    direction: Direction | Within,
    k: int,
    *,
    block: int | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[NegativeBlock]:
    """Every anchor of a direction, in id order, block by block: what `write_negatives` takes.

    `vectors` (anchors, dim) by row of `pairs`; `progress(done, total)` is called after each block. Raises as
    `mine_block`, before the first block.
    """
    check_rows(gallery, pairs, sides(direction)[1])
    check_k(pairs, direction, k)
    anchors, _ = sides(direction)
    order = pairs.order(anchors)
    if len(vectors) != len(order):
        raise BadInput(f"{len(vectors)} vectors for {len(order)} {anchors}s; give one each.")
    step = block or block_size(k)

    def blocks() -> Iterator[NegativeBlock]:
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            yield mine_block(vectors[rows], index, gallery, pairs, direction, k, rows, threads=threads)
            if progress is not None:
                progress(start + len(rows), len(order))

    return blocks()


def check_rows(vectors: Vectors, pairs: Pairs, side: Side) -> None:
    """Raise BadInput unless `vectors` has a float16 or float32 row per item of a side."""
    if vectors.ndim != 2 or len(vectors) != len(pairs.ids(side)):
        raise BadInput(
            f"{side} vectors have shape {vectors.shape} for {len(pairs.ids(side))} {side}s; give one row each."
        )
    if vectors.dtype not in (np.float16, np.float32):
        raise BadInput(f"the {side} vectors have dtype {vectors.dtype}; convert them to float32 (or float16) first.")


def check_k(pairs: Pairs, direction: Direction | Within, k: int) -> None:
    """Raise BadInput unless k is between 1 and the size of the gallery."""
    _, other = sides(direction)
    size = len(pairs.ids(other))
    if k < 1:
        raise BadInput(f"k = {k}; ask for at least 1 negative per anchor.")
    if k > size:
        raise BadInput(f"k = {k} is larger than the gallery of {size} {other}s; ask for at most {size}.")
