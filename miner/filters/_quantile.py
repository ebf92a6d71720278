"""A percentile of more numbers than fit into memory, exactly: no sketch, no sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = ["quantile"]

Values = npt.NDArray[np.float32]


def quantile(values: Callable[[], Iterator[Values]], share: Fraction) -> float:
    """The least of the values that at least `share` of them do not exceed; -inf for `share` 0, nan for no value.

    `values()` gives all of them, in pieces, as often as asked; nan are left out. The share is a fraction because in
    binary 0.07 of 100 is more than 7.
    """
    if share <= 0:
        return -math.inf
    high = np.zeros(1 << 16, dtype=np.int64)
    for piece in values():
        high += np.bincount(_ordered(piece) >> 16, minlength=len(high))
    number = int(high.sum())
    if number == 0:
        return math.nan
    wanted = min(math.ceil(share * number), number)
    bucket = int(np.searchsorted(np.cumsum(high), wanted))
    low = np.zeros(1 << 16, dtype=np.int64)
    for piece in values():
        codes = _ordered(piece)
        low += np.bincount(codes[codes >> 16 == bucket] & 0xFFFF, minlength=len(low))
    left = wanted - int(high[:bucket].sum())
    code = np.uint32(bucket << 16 | int(np.searchsorted(np.cumsum(low), left)))
    bits = code ^ np.uint32(0x80000000) if code >> 31 else ~code
    return float(np.asarray(bits, dtype=np.uint32).view(np.float32))


def _ordered(values: Values) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of the values, nan left out."""
    values = values[~np.isnan(values)] + np.float32(0)  # no negative zero
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
