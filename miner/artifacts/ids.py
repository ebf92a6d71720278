"""Ids of the items of one side: unique strings, one per row, in a tenth of the memory that Python's take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["Ids"]

Rows = npt.NDArray[np.int64]
_AT_ONCE = 1 << 16


class Ids(Sequence[str]):
    """A sequence of strings; equal to any other sequence of the same. `arrow` is the pyarrow array of them."""

    def __init__(self, ids: Iterable[str] | Any) -> None:
        import pyarrow as pa

        if isinstance(ids, Ids):
            self.arrow: Any = ids.arrow
        elif isinstance(ids, pa.ChunkedArray):
            self.arrow = ids.combine_chunks()
        elif isinstance(ids, pa.Array):
            self.arrow = ids
        else:
            self.arrow = pa.array(ids if isinstance(ids, (list, tuple)) else list(ids), pa.string())

    @classmethod
    def numbers(cls, count: int) -> Ids:
        """ "0", "1", ..., `count` - 1."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return cls(pc.cast(pa.array(np.arange(count)), pa.string()))

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Ids: ...

    def __getitem__(self, at: int | slice) -> str | Ids:
        if isinstance(at, slice):
            return Ids(self.arrow.take(np.arange(len(self))[at]))
        found: str = self.arrow[int(at)].as_py()
        return found

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.arrow.slice(start, _AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return bool(self.arrow.equals(other.arrow))
        return isinstance(other, (list, tuple)) and len(self) == len(other) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((len(self), self[0] if len(self) else None))

    def __repr__(self) -> str:
        return f"Ids({list(self) if len(self) <= 10 else [*self[:9], '...']})"

    def take(self, rows: Rows) -> Ids:
        """The ids of some rows."""
        return Ids(self.arrow.take(rows))

    def rows(self, ids: Any) -> Rows:
        """Row of each of these ids (a sequence, or a pyarrow array), -1 for an unknown one."""
        import pyarrow.compute as pc

        found = pc.index_in(Ids(ids).arrow, value_set=self.arrow)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def repeated(self) -> str | None:
        """An id that occurs more than once: the first that does."""
        import pyarrow.compute as pc

        ordered = self.arrow.take(self.order)
        if not pc.any(pc.equal(ordered.slice(1), ordered.slice(0, max(len(self) - 1, 0)))).as_py():
            return None
        times = pc.value_counts(self.arrow)  # in order of appearance
        twice = np.flatnonzero(times.field("counts").to_numpy() > 1)
        found: str = times.field("values")[int(twice[0])].as_py()
        return found

    @cached_property
    def order(self) -> Rows:
        """Rows sorted by id: as numbers when every id is a plain decimal integer, else by code point.

        This order breaks ties between equal scores and sorts the anchors of a negative table, so that neither depends
        on the order in which somebody happened to store vectors.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        keys = {"id": self.arrow}
        if len(self) and pc.all(pc.match_substring_regex(self.arrow, "^[0-9]+$")).as_py():
            digits = pc.ascii_ltrim(self.arrow, characters="0")
            keys = {"length": pc.binary_length(digits), "digits": digits, **keys}
        sort = [(key, "ascending") for key in keys]
        return np.asarray(pc.sort_indices(pa.table(keys), sort_keys=sort).to_numpy(), dtype=np.int64)

    @cached_property
    def places(self) -> Rows:
        """Where each row stands in that order."""
        found = np.empty(len(self), dtype=np.int64)
        found[self.order] = np.arange(len(self))
        return found
