"""Which negatives are most likely to be true after all: those that look like the anchor's positives.

It is what the rule `look-alike` goes by, which told false negatives apart better than any score where people had judged
some (benchmarks/false_negatives.py): the cosine of the texts plus half that of the images, from -1.5 to 1.5. Where the
vectors are gone, the score above the lowest positive stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs, Side

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable

__all__ = ["suspicion"]

_CELLS = 1 << 20  # negatives looked at together


def suspicion(
    pairs: Pairs,
    table: NegativeTable,
    rows: npt.NDArray[np.int64],
    depth: int,
    vectors: Mapping[Side, npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """(rows, depth) of the first negatives of some anchors; nan where there is none."""
    look = _look_alike(pairs, table, vectors) if vectors else _hardness
    step = max(1, _CELLS // max(depth, 1))
    found = np.full((len(rows), depth), np.nan, dtype=np.float32)
    for start in range(0, len(rows), step):
        at = rows[start : start + step]
        block = NegativeBlock(at, table.negatives[at, :depth], table.scores[at, :depth], table.lowest_positive[at])
        seen = look(block)
        found[start : start + len(at)] = np.where(block.negatives >= 0, seen, np.float32(np.nan))
    return found


def _hardness(block: NegativeBlock) -> npt.NDArray[np.float32]:
    return np.asarray(block.scores - block.lowest_positive[:, None], dtype=np.float32)


def _look_alike(
    pairs: Pairs, table: NegativeTable, vectors: Mapping[Side, npt.NDArray[np.float32]]
) -> Callable[[NegativeBlock], npt.NDArray[np.float32]]:
    from miner.filters import Context
    from miner.filters.look_alike import Config, likeness

    def never(*_: Any) -> Any:
        raise BadInput("the page looks at the negatives of a table alone.")

    context = Context(pairs, table.direction, table.k, (table.k,), vectors, never, never, never, never)
    return likeness(Config(), context)
