"""The same search on a GPU: tiles of the score matrix are made there, and only what may be among the best leaves it.

Vectors are rounded to 11 significant bits, which tensor cores multiply without rounding again (TF32). By how much that
moved a vector is measured, and bounds what it does to a score (Cauchy-Schwarz inequality). So proposals and their proof
are those of `miner.exhaustive`, and the negatives the same as without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.exhaustive import Proposal
from miner.index import _torch
from miner.memory import available
from miner.scores import norms
from miner.tiles import Columns

__all__ = ["Fused", "device", "free", "search"]

Lengths = npt.NDArray[np.float64]
Ranked = TypeVar("Ranked")

_HALF_STEP = 2.0**-11  # of the rounded number: 11 significant bits
_ROOM = 3  # times the depth
_RANKED = 512  # items ranked at once
_BLOCK = 2**24  # numbers copied to the device at once
_ABOVE = 2**22  # scores above the cut that are looked at together


def device() -> str | None:
    """The GPU that torch sees, or None."""
    return "cuda" if _torch.available() and _torch.torch().cuda.is_available() else None


def free(where: str) -> int:
    """Bytes of memory that are free on a device."""
    return int(_torch.torch().cuda.mem_get_info(where)[0]) if where.startswith("cuda") else available()


class Fused:
    """Rows of the score matrix on a device; see `miner.tiles.Tiles` for the errors, here in units of similarity."""

    def __init__(self, rows: Columns, row_lengths: Lengths, max_norm: float, where: str) -> None:
        """`max_norm` is at least the norm of any column."""
        self.torch, self.device, self.max_norm = _torch.torch(), where, max_norm
        self.longest = float(row_lengths.max(initial=0.0))
        with _enough(self.torch):
            self.rows, moved = self.taken(rows)
        self.row_error = self._error(row_lengths, moved, max_norm)

    def taken(self, vectors: Columns) -> tuple[Any, Lengths]:
        """(the vectors, rounded, on the device, by how much each was moved)."""
        torch = self.torch
        made = torch.empty(tuple(vectors.shape), dtype=torch.float32, device=self.device)
        moved = np.empty(len(vectors))
        step = max(1, _BLOCK // vectors.shape[1])
        for start in range(0, len(vectors), step):
            at = slice(start, start + step)
            exact = torch.from_numpy(np.require(vectors[at], np.float32, ["C", "W"])).to(self.device)
            bits = exact.view(torch.int32)
            made[at] = ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
            moved[at] = (exact.double() - made[at].double()).norm(dim=1).cpu().numpy()
        return made, moved

    def column_error(self, lengths: Lengths, moved: Lengths) -> Lengths:
        """(columns,): no score of a column is off by more."""
        return self._error(lengths, moved, self.longest)

    def _error(self, lengths: Lengths, moved: Lengths, longest: float) -> Lengths:
        # |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'|; then a sum of dim products, exact each, in any order and with
        # additions that may truncate (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021): 2^-23 an addition.
        dim = self.rows.shape[1]
        other = longest * _HALF_STEP
        summed = (dim + 8) * 2.0**-23 * (lengths + moved) * (longest + other)
        flushed = 2.0**-125 * (dim + 8) * (1 + longest + lengths)
        return np.asarray(1.01 * (moved * longest + (lengths + moved) * other + summed) + flushed)


class _Best:
    """As `miner.best.Best`, on a device."""

    def __init__(self, fused: Fused, items: int, depth: int, error: Lengths, others: int) -> None:
        torch = self.torch = fused.torch
        self.depth, self.room = depth, min(_ROOM * depth + 64, others)
        of = {"device": fused.device}
        self.scores = torch.full((items, self.room), -torch.inf, dtype=torch.float32, **of)
        self.candidates = torch.full((items, self.room), -1, dtype=torch.int32, **of)
        self.fill = torch.zeros(items, dtype=torch.int64, **of)
        self.cut = torch.full((items,), -torch.inf, dtype=torch.float32, **of)
        self.error = torch.from_numpy(error).to(fused.device)

    def take(self, start: int, tile: Any, offset: int) -> None:
        """Scores (items, others) of the items `start`, ... with the others `offset`, ..."""
        torch, at = self.torch, slice(start, start + tile.shape[0])
        if bool((self.cut[at] == -torch.inf).any()) and tile.shape[1] >= self.depth:
            reached = tile.topk(self.depth, dim=1, sorted=False).values.amin(1)
            self.cut[at] = torch.maximum(self.cut[at], self._below(reached, self.error[at]))
        # By items, whichever way the tile lies in memory; where nearly everything is above the cut, a few at a time.
        above = (tile > self.cut[at, None]).contiguous()
        if tile.shape[1] > 1 and int(above.sum()) > _ABOVE:
            half = tile.shape[1] // 2
            del above
            self.take(start, tile[:, :half], offset)
            self.take(start, tile[:, half:], offset + half)
            return
        item, other = above.nonzero(as_tuple=True)
        scores = tile[item, other]
        item += start
        other = (other + offset).int()
        while len(item):
            counts = torch.bincount(item - start, minlength=tile.shape[0])
            if bool((counts > self.room - self.fill[at]).any()):
                self.sort_out(at)
                wanted = scores > self.cut[item]
                item, other, scores = item[wanted], other[wanted], scores[wanted]
                counts = torch.bincount(item - start, minlength=tile.shape[0])
            rank = torch.arange(len(item), device=item.device) - (counts.cumsum(0) - counts)[item - start]
            slot = self.fill[item] + rank
            fits = slot < self.room
            now = item[fits], slot[fits]
            self.scores[now], self.candidates[now] = scores[fits], other[fits]
            self.fill[at] += torch.bincount(now[0] - start, minlength=tile.shape[0])
            item, other, scores = item[~fits], other[~fits], scores[~fits]

    def sort_out(self, at: slice, *, last: bool = False) -> None:
        """Drop what is out, and raise the cuts; `last`: no more will come, so that nothing needs room."""
        torch = self.torch
        items = (self.fill[at] > self.depth).nonzero().squeeze(1) + at.start
        if not len(items):
            return
        scores, order = self.scores[items].sort(dim=1, descending=True)
        candidates = self.candidates[items].gather(1, order)
        self.cut[items] = torch.maximum(self.cut[items], self._below(scores[:, self.depth - 1], self.error[items]))
        keep = scores > self.cut[items, None]
        if not last:
            full = keep.sum(1) > self.room - self.depth // 2 - 1
            self.cut[items[full]] = torch.inf
            keep[full] = False
        self.scores[items] = scores.where(keep, torch.full_like(scores, -torch.inf))
        self.candidates[items] = candidates.where(keep, torch.full_like(candidates, -1))
        self.fill[items] = keep.sum(1)

    def settle(self, at: slice) -> tuple[npt.NDArray[np.int32], Lengths]:
        """As `Best.settle`."""
        self.sort_out(at, last=True)
        torch = self.torch
        ceiling = self.cut[at].double() + self.error[at]  # inf for what is full
        ceiling[self.cut[at] == -torch.inf] = -torch.inf
        width = max(1, int(self.fill[at].max()))
        return self.candidates[at, :width].cpu().numpy(), ceiling.cpu().numpy()

    def _below(self, scores: Any, error: Any) -> Any:
        """The largest score that is out when at least `depth` candidates reach `scores`."""
        edge = (scores.double() - 2 * error).float()
        return self.torch.nextafter(edge, self.torch.full_like(edge, -self.torch.inf))


def search(
    tiles: Fused,
    num_rows: int,
    columns: Columns,
    row_depth: int,
    column_depth: int,
    rank_rows: Callable[[Proposal], Ranked],
    rank_columns: Callable[[Proposal], Ranked],
    *,
    threads: int = 1,
    tile: tuple[int, int] = (8192, 16384),
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Ranked]:
    """As `exhaustive.search`: the proposals of the columns in order, then of the rows, ranked on `threads` threads
    while the device goes on."""
    height, width = tile
    best = _Best(tiles, num_rows, row_depth, tiles.row_error, len(columns)) if row_depth else None
    waiting: list[Any] = []
    with ThreadPoolExecutor(threads) as pool, _tensor_cores(tiles.torch), _enough(tiles.torch):
        try:
            for start in range(0, len(columns), width):
                some = np.asarray(columns[start : start + width])
                panel, moved = tiles.taken(some)
                own = None
                if column_depth:
                    error = tiles.column_error(norms(some), moved)
                    own = _Best(tiles, len(some), column_depth, error, num_rows)
                for first in range(0, num_rows, height):
                    scores = tiles.rows[first : first + height] @ panel.T
                    if best is not None:
                        best.take(first, scores, start)
                    if own is not None:
                        own.take(0, scores.T, first)
                yield from _done(waiting, 2 * threads)
                if own is not None:
                    waiting += [pool.submit(rank_columns, each) for each in _proposals(own, len(some), start)]
                progress(min(start + width, len(columns)))
            if best is not None:
                waiting += [pool.submit(rank_rows, each) for each in _proposals(best, num_rows, 0)]
            yield from _done(waiting, 0)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _tensor_cores(torch: Any) -> Iterator[None]:
    """Let them multiply: without, the same comes out more slowly."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _enough(torch: Any) -> Iterator[None]:
    """A sentence where the device has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as full:
        raise BadInput(
            "the GPU has too little memory for this search; give a smaller --memory, or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) to search on the CPU."
        ) from full


def _proposals(best: _Best, items: int, shift: int) -> Iterator[Proposal]:
    for at in range(0, items, _RANKED):
        candidates, ceiling = best.settle(slice(at, min(at + _RANKED, items)))
        yield Proposal(shift + at, candidates, ceiling)


def _done(waiting: list[Any], left: int) -> Iterator[Any]:
    """Take results in order until so many are left."""
    while len(waiting) > left:
        yield waiting.pop(0).result()
