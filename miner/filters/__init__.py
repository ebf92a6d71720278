"""Rules that drop candidates that may be false negatives, or teach nothing. A rule is one file here.

Config                       a frozen dataclass of settings (see `miner.spoken`); ValueError for a bad one
prepare(config, context)     a Judge: given candidates of some anchors, (anchors, width) booleans, True drops
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from miner.artifacts.candidates import Candidates
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side

__all__ = ["Context", "Judge", "Rule"]

Judge = Callable[[NegativeBlock], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Context:
    """What a rule may look at.

    `vectors` are (items, dim) by side and row of `pairs`; their inner product is the score. `survivors()` are the
    candidates that the rules before this one leave, block by block, with -1 in place of the dropped.
    `candidates(direction)` are those of a direction, None where they were not searched. `contents(side)` are what the
    user says an item's text is (or the path of its picture), by row; raises BadInput where nobody said.
    """

    pairs: Pairs
    direction: Direction
    vectors: Mapping[Side, npt.NDArray[np.floating[Any]]]
    survivors: Callable[[], Iterator[NegativeBlock]]
    candidates: Callable[[Direction], Candidates | None]
    contents: Callable[[Side], list[str]]


class Rule(Protocol):
    """A module of this package."""

    Config: type[Any]

    def prepare(self, config: Any, context: Context) -> Judge: ...
