"""Mining: for every anchor the k nearest of the gallery that are not its positives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from miner import exhaustive
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side, sides
from miner.index import Index
from miner.scores import norms, similarities
from miner.search import Excluded, Gallery, Hits, Searcher
from miner.tiles import extent, fastest

__all__ = ["block_size", "check_k", "mine", "mine_block", "mine_exhaustively"]

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
    searched = Gallery(gallery, _places(pairs.order(other)), index.max_norm, threads)
    excluded = _own(pairs, anchors, anchor_rows)
    hits = Searcher(index, searched).top(queries, k, excluded)
    return _block(queries, searched, pairs, direction, anchor_rows, excluded, hits)


def _own(pairs: Pairs, side: Side, rows: Rows) -> Excluded:
    """The positives of some items of a side, as (offsets, rows)."""
    offsets, positives = pairs.positives(side)
    counts = np.diff(offsets)[rows]
    own = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=own[1:])
    return own, positives[np.repeat(offsets[rows] - own[:-1], counts) + np.arange(own[-1])]


def _places(order: Rows) -> Rows:
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def _block(
    queries: Vectors,
    gallery: Gallery,
    pairs: Pairs,
    direction: Direction,
    anchor_rows: Rows,
    excluded: Excluded,
    hits: Hits,
) -> NegativeBlock:
    """What was found, beside what the anchors' own positives score."""
    offsets, own = excluded
    counts = np.diff(offsets)
    scores = similarities(
        queries, np.repeat(np.arange(len(anchor_rows)), counts), gallery.vectors, own, gallery.threads
    )
    lowest = np.minimum.reduceat(scores, offsets[:-1]) if len(scores) else scores
    other = sides(direction)[1]
    reasons = {
        int(anchor_rows[at]): f"{counts[at]} of the {gallery.size} {other}s are its positives"
        for at in np.flatnonzero(gallery.size - counts < hits.rows.shape[1])
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


def mine_exhaustively(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[Direction],
    k: int,
    *,
    threads: int = 1,
    tile: tuple[int, int] = exhaustive.TILE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Direction, Iterator[NegativeBlock]]]:
    """The directions asked for, each with what `mine` gives, from one pass over the score matrix and without an index.

    `vectors` (items, dim) by side and row of `pairs`, float16 or float32. The blocks of a direction must be taken
    before the next one is asked for. The side with fewer items is held in memory as the rows of the matrix; the other
    is read in id order, panel by panel, which `progress(items read, all)` tells. Raises as `mine_block`.
    """
    for direction in directions:
        _check(vectors[sides(direction)[1]], pairs, direction, k)
    small, large = sorted(get_args(Side), key=lambda side: len(pairs.ids(side)))
    of_anchors = {sides(direction)[0]: direction for direction in directions}
    order = {side: pairs.order(side) for side in (small, large)}
    length = {side: norms(vectors[side]) for side in (small, large)}
    longest = {side: float(length[side].max()) for side in (small, large)}
    if longest[small] * longest[large] > 1e37:
        raise BadInput("the vectors are so long that a similarity overflows float32; scale them down.")
    depth = {}
    for side, other in ((small, large), (large, small)):
        counts = np.diff(pairs.positives(side)[0])
        wanted = k + int(np.quantile(counts, 0.99)) + 1
        depth[side] = min(wanted, len(order[other])) if side in of_anchors else 0
    rows = np.ascontiguousarray(vectors[small][order[small]])
    columns = _Ordered(vectors[large], order[large])
    tiles = fastest(rows, length[small][order[small]], columns, longest[large], extent(rows), extent(vectors[large]))

    def ranks(side: Side, other: Side) -> Callable[[exhaustive.Proposal], NegativeBlock]:
        gallery = Gallery(vectors[other], _places(order[other]), longest[other])

        def rank(proposal: exhaustive.Proposal) -> NegativeBlock:
            anchors = order[side][proposal.start : proposal.start + len(proposal.rows)]
            found = np.where(proposal.rows >= 0, order[other][proposal.rows], -1)
            queries = np.asarray(vectors[side][anchors], dtype=np.float32)
            excluded = _own(pairs, side, anchors)
            hits = gallery.ranked(queries, k, found, proposal.ceiling, excluded)
            return _block(queries, gallery, pairs, of_anchors[side], anchors, excluded, hits)

        return rank

    blocks = exhaustive.search(
        tiles, len(rows), columns, depth[small], depth[large], ranks(small, large), ranks(large, small),
        threads=threads, tile=tile, progress=lambda done: progress(done, len(columns)),
    )  # fmt: skip
    if depth[large]:
        yield of_anchors[large], itertools.islice(blocks, -(-len(columns) // tile[1]))
    if depth[small]:
        yield of_anchors[small], blocks


class _Ordered:
    """Vectors in another order, read slice by slice."""

    def __init__(self, vectors: Vectors, order: Rows) -> None:
        self.vectors, self.order = vectors, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: slice) -> Vectors:
        return np.asarray(self.vectors[self.order[at]])


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
