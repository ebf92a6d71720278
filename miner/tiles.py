"""Tiles of a score matrix, approximate, with a bound on how far they are off: what finds candidates at full speed.

float32     a matrix product as any BLAS makes it; off by its rounding
int8        every number as two int8 digits, v = 128 high + low in steps of a common width; three int8 products give
            128 high.high' + (high.low' + low.high'). Off by what rounding to a step and leaving out low.low' cost:
            about 5e-4 for unit vectors of 1,024 dims, bounded by the Cauchy-Schwarz inequality. A CPU with int8 dot
            products (AVX-512 VNNI, AMX) does the three several times faster than one product of float32.

Rows of the matrix are items of one side, columns of the other.
"""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from miner.index import _torch
from miner.search import float32_error

__all__ = ["Columns", "Float32", "Int8", "Tiles", "extent", "fastest"]

Vectors = npt.NDArray[np.floating[Any]]
Lengths = npt.NDArray[np.float64]

_BASE = 128
_STEPS = 127 * _BASE


class Columns(Protocol):
    """Vectors (items, dim) that are read slice by slice; an array or a memory map is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice, /) -> Vectors: ...


class Tiles(Protocol):
    """Scores of all rows with some columns at a time."""

    dtype: Any
    unit: float
    """The similarity that a tile's 1 stands for."""
    row_error: Lengths
    """(rows,): no score in a row is off by more, in the tile's units."""

    def column_error(self, columns: Vectors, lengths: Lengths) -> Lengths:
        """(columns,): the same for columns."""

    def panel(self, columns: Vectors) -> Any:
        """Columns made ready for `tile`."""

    def tile(self, rows: slice, panel: Any, out: Any) -> npt.NDArray[Any]:
        """Scores (rows, columns), in `out`, which `room` made."""

    def room(self, rows: int, columns: int) -> Any:
        """Memory for a tile."""


class Float32:
    """float32 products, by torch where it is installed, else by numpy."""

    dtype = np.float32
    unit = 1.0

    def __init__(self, rows: Columns, row_lengths: Lengths, max_norm: float) -> None:
        self.rows = np.require(rows[:], np.float32, ["C", "W"])  # torch warns of what it cannot write to
        self.longest_row = float(row_lengths.max(initial=0.0))
        self.row_error = float32_error(row_lengths, max_norm, rows.shape[1])
        self.torch = _torch.torch() if _torch.available() else None

    def column_error(self, columns: Vectors, lengths: Lengths) -> Lengths:
        return float32_error(lengths, self.longest_row, columns.shape[1])

    def panel(self, columns: Vectors) -> Any:
        return np.ascontiguousarray(np.asarray(columns, dtype=np.float32).T)

    def room(self, rows: int, columns: int) -> Any:
        return np.empty(rows * columns, dtype=np.float32)

    def tile(self, rows: slice, panel: Any, out: Any) -> npt.NDArray[Any]:
        some = self.rows[rows]
        found: npt.NDArray[np.float32] = out[: len(some) * panel.shape[1]].reshape(len(some), panel.shape[1])
        if self.torch is None:
            return np.matmul(some, panel, out=found)
        self.torch.mm(self.torch.from_numpy(some), self.torch.from_numpy(panel), out=self.torch.from_numpy(found))
        return found


class Int8:
    """Three int8 products."""

    dtype = np.int32

    def __init__(
        self, rows: Columns, row_lengths: Lengths, row_extent: float, max_norm: float, column_extent: float
    ) -> None:
        """`*_extent` is the largest absolute number of a side, `max_norm` the largest norm of a column."""
        dim = rows.shape[1]
        longest = float(row_lengths.max(initial=0.0))
        self.root, self.max_norm, self.longest = math.sqrt(dim), max_norm, longest
        self.row_step, self.column_step = row_extent / _STEPS, column_extent / _STEPS
        # The sum of the three products must fit into int32, or the steps must be wider.
        largest = (longest / self.row_step + self.root) * (max_norm / self.column_step + self.root) / _BASE
        wider = math.sqrt(max(1.0, (largest + _BASE * dim) / 2**30))
        self.row_step *= wider
        self.column_step *= wider
        self.unit = self.row_step * self.column_step * _BASE
        self.row_error = self._error(row_lengths, self.row_step, self.column_step, max_norm, dim)
        torch = _torch.torch()
        self.torch = torch
        high, both = np.empty((len(rows), dim), dtype=np.int8), np.empty((len(rows), 2 * dim), dtype=np.int8)
        block = max(1, 2**20 // dim)
        for start in range(0, len(rows), block):
            at = slice(start, start + block)
            high[at], both[at, dim:] = _digits(np.asarray(rows[at]), self.row_step)
            both[at, :dim] = high[at]
        self.high, self.both = torch.from_numpy(high), torch.from_numpy(both)

    def _error(self, lengths: Lengths, own: float, other: float, longest: float, dim: int) -> Lengths:
        # |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'|, with |x - x'| <= step / 2 sqrt(dim); low.low' <= 64^2 dim.
        rounded_own, rounded_other = 0.5001 * own * self.root, 0.5001 * other * self.root
        similarity = rounded_own * longest + (lengths + rounded_own) * rounded_other
        return np.asarray(similarity / self.unit + (_BASE / 2) ** 2 * dim / _BASE + 1)

    def column_error(self, columns: Vectors, lengths: Lengths) -> Lengths:
        return self._error(lengths, self.column_step, self.row_step, self.longest, columns.shape[1])

    def panel(self, columns: Vectors) -> Any:
        high, low = _digits(columns, self.column_step)
        crossed = np.concatenate([low, high], axis=1)
        return tuple(self._transposed(part) for part in (high, crossed))

    def _transposed(self, part: npt.NDArray[np.int8]) -> Any:
        # Into memory of its own: of a view with other strides than usual, _int_mm has made nonsense without a word.
        made = self.torch.empty(part.shape[::-1], dtype=self.torch.int8)
        return made.copy_(self.torch.from_numpy(part).t())

    def room(self, rows: int, columns: int) -> Any:
        return [self.torch.empty(rows * columns, dtype=self.torch.int32) for _ in range(2)]

    def tile(self, rows: slice, panel: Any, out: Any) -> npt.NDArray[Any]:
        torch = self.torch
        high, crossed = panel
        first, second = self.high[rows], self.both[rows]
        shape = (len(first), high.shape[1])
        size = shape[0] * shape[1]
        most, rest = (part[:size].view(shape) for part in out)
        torch._int_mm(first, high, out=most)
        torch._int_mm(second, crossed, out=rest)
        torch.add(rest, most, alpha=_BASE, out=most)
        return np.asarray(most.numpy())


def extent(vectors: Vectors) -> float:
    """The largest absolute number."""
    block = max(1, 2**20 // vectors.shape[1])
    return max(float(np.abs(vectors[at : at + block]).max()) for at in range(0, len(vectors), block))


def fastest(
    rows: Columns, row_lengths: Lengths, columns: Columns, max_norm: float, row_extent: float, column_extent: float
) -> Tiles:
    """The kind of tile that this machine makes faster, if it is precise enough to tell these scores apart.

    The choice changes how long a search takes, never what it finds.
    """
    if _digits_pay(rows, row_lengths, columns, max_norm, row_extent, column_extent):
        return Int8(rows, row_lengths, row_extent, max_norm, column_extent)
    return Float32(rows, row_lengths, max_norm)


def _digits_pay(
    rows: Columns, row_lengths: Lengths, columns: Columns, max_norm: float, row_extent: float, column_extent: float
) -> bool:
    """Tried with some of the rows and columns."""
    if not (row_extent and column_extent and _torch.available() and hasattr(_torch.torch(), "_int_mm")):
        return False
    with _torch.one_thread_each() as alone:
        alone()
        if not _sound(rows.shape[1]):
            return False
        some, sample = slice(0, 256), np.asarray(columns[:1024])
        head, lengths = np.asarray(rows[some]), row_lengths[some]
        exact = Float32(head, lengths, max_norm)
        digits = Int8(head, lengths, row_extent, max_norm, column_extent)
        seconds: dict[Tiles, float] = {}
        for tiles in (exact, digits):
            panel, room = tiles.panel(sample), tiles.room(256, len(sample))
            tiles.tile(some, panel, room)  # the first allocates
            began = time.perf_counter()
            scores = tiles.tile(some, panel, room)
            seconds[tiles] = time.perf_counter() - began
    # What cannot be told from the k-th best must be ranked by its true score: that should be few.
    spread = float(np.std(scores)) * digits.unit
    coarse = float(np.median(digits.row_error)) * digits.unit > spread / 8
    return not coarse and seconds[digits] <= seconds[exact]


def _sound(dim: int) -> bool:
    """Whether int8 products are right here, and not by a slow detour.

    Without the instructions for them a product may be summed up in 16 bits and saturate, without a word (torch issue
    136746): most of all with large digits of one sign, which are tried.
    """
    torch = _torch.torch()
    random = np.random.default_rng(0)
    digits = np.array([-127, -64, 63, 127], np.int8)
    first, second = random.choice(digits, (64, 2 * dim)), random.choice(digits, (2 * dim, 256))
    first[:32], second[:, :128] = np.abs(first[:32]), np.abs(second[:, :128])
    made = torch.empty((64, 256), dtype=torch.int32)
    given = (torch.from_numpy(first), torch.from_numpy(second))
    try:
        torch._int_mm(*given, out=made)
    except (RuntimeError, NotImplementedError):
        return False
    began = time.perf_counter()
    torch._int_mm(*given, out=made)
    middle = time.perf_counter()
    expected = first.astype(np.float64) @ second.astype(np.float64)  # exact
    plain = time.perf_counter() - middle
    return bool((made.numpy() == expected).all()) and middle - began < 4 * plain + 0.01


def _digits(vectors: Vectors, step: float) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """The numbers in steps as (high, low) with 128 high + low."""
    high, low = (np.empty(vectors.shape, dtype=np.int8) for _ in range(2))
    block = max(1, 2**17 // vectors.shape[1])
    for start in range(0, len(vectors), block):
        at = slice(start, start + block)
        steps = np.rint(vectors[at].astype(np.float64) / step).astype(np.int32)
        upper = (steps + _BASE // 2) >> 7
        high[at], low[at] = upper, steps - (upper << 7)
    return high, low
