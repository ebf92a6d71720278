"""One direction of mining: for every anchor the k nearest of the gallery that are not its positives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.index import Index
from miner.search import Searcher, similarities

__all__ = ["block_size", "check_k", "mine", "mine_block"]

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
    direction: Direction,
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
    anchors, other = sides(direction)
    _check(gallery, pairs, direction, k)
    if len(queries) != len(anchor_rows):
        raise BadInput(f"{len(queries)} vectors for {len(anchor_rows)} anchors; give one each.")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    offsets, positives = pairs.positives(anchors)
    counts = np.diff(offsets)[anchor_rows]
    own_offsets = np.zeros(len(anchor_rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=own_offsets[1:])
    own_rows = positives[np.repeat(offsets[anchor_rows] - own_offsets[:-1], counts) + np.arange(own_offsets[-1])]
    order = pairs.order(other)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))

    hits = Searcher(index, gallery, place, threads).top(queries, k, (own_offsets, own_rows))
    scores = similarities(queries, np.repeat(np.arange(len(anchor_rows)), counts), gallery, own_rows, threads)
    lowest = np.minimum.reduceat(scores, own_offsets[:-1]) if len(scores) else scores
    reasons = {
        int(anchor_rows[at]): f"{counts[at]} of the {len(gallery)} {other}s are its positives"
        for at in np.flatnonzero(len(gallery) - counts < k)
    }
    return NegativeBlock(np.asarray(anchor_rows, dtype=np.int64), hits.rows, hits.scores, lowest, reasons)


def mine(
    vectors: Vectors,
    index: Index,
    gallery: Vectors,
    pairs: Pairs,
    direction: Direction,
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
    _check(gallery, pairs, direction, k)
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


def _check(gallery: Vectors, pairs: Pairs, direction: Direction, k: int) -> None:
    _, other = sides(direction)
    if len(gallery) != len(pairs.ids(other)):
        raise BadInput(f"{len(gallery)} vectors for {len(pairs.ids(other))} {other}s; give one each.")
    if gallery.dtype not in (np.float16, np.float32):
        raise BadInput(f"the gallery has dtype {gallery.dtype}; convert it to float32 (or float16) first.")
    check_k(pairs, direction, k)


def check_k(pairs: Pairs, direction: Direction, k: int) -> None:
    """Raise BadInput unless k is between 1 and the size of the gallery."""
    _, other = sides(direction)
    size = len(pairs.ids(other))
    if k < 1:
        raise BadInput(f"k = {k}; ask for at least 1 negative per anchor.")
    if k > size:
        raise BadInput(f"k = {k} is larger than the gallery of {size} {other}s; ask for at most {size}.")
