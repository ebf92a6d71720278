"""Which anchors the page lists, and which of them it knows in every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, sides
from pipelines.report.suspicion import suspicion
from pipelines.report.view import DIRECTIONS, RoundView, RunView

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable

__all__ = ["Listing", "check_tables", "hardest_margin", "listing", "share_outscored"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """The anchors of one direction that the page lists.

    `rows` (n,) are rows of the pairs, in order; `suspicion` (n, ranks) is of their first negatives in the last table;
    `detailed` are the positions in `rows` of those known in every round.
    """

    direction: Direction
    rows: Rows
    suspicion: npt.NDArray[np.float32]
    detailed: Rows

    @property
    def most(self) -> npt.NDArray[np.float32]:
        """(n,) the highest suspicion of an anchor's negatives, -inf for one without."""
        return np.asarray(np.where(np.isnan(self.suspicion), -np.inf, self.suspicion).max(1, initial=-np.inf))


def check_tables(pairs: Pairs, rounds: Sequence[RoundView]) -> None:
    """Raise BadInput unless every table is of the direction it is filed under and of these pairs."""
    for view in rounds:
        for direction, table in view.tables.items():
            side, other = sides(direction)
            where = f"{pairs.name}: the {direction} table of round {view.round}"
            if table.direction != direction:
                raise BadInput(f"{where} says its direction is {table.direction}; file each table under its own.")
            expected, found = len(pairs.ids(side)), len(table.negatives)
            if found != expected:
                raise BadInput(
                    f"{where} has {found} anchors, but the dataset has {expected} {side}s; "
                    "give the dataset that the table was mined from."
                )
            gallery = len(pairs.ids(other))
            highest = int(np.max(table.negatives, initial=-1))
            if highest >= gallery:
                raise BadInput(
                    f"{where} names {other} row {highest}, but the dataset has {gallery} {other}s; "
                    "give the dataset that the table was mined from."
                )


def hardest_margin(table: NegativeTable) -> npt.NDArray[np.float64]:
    """Hardness of every anchor's first negative, (num_anchors,): its score - the lowest positive; -inf without one."""
    if table.k == 0:
        return np.full(len(table.negatives), -np.inf)
    first = np.asarray(table.scores[:, 0], dtype=np.float64) - np.asarray(table.lowest_positive, dtype=np.float64)
    return np.where(np.asarray(table.negatives[:, 0]) >= 0, first, -np.inf)


def share_outscored(table: NegativeTable) -> float:
    """Share of all anchors whose first negative scores above their lowest positive."""
    return float(np.mean(hardest_margin(table) > 0))


def listing(run: RunView, direction: Direction, most: int, detailed: int, ranks: int) -> Listing | None:
    """At most `most` anchors, the more suspicious half and others drawn by the seed, `detailed` of them chosen alike;
    None where no round mined the direction."""
    tables = run.tables(direction)
    if not tables:
        return None
    table = tables[-1][1]
    random = np.random.default_rng([run.seed, DIRECTIONS.index(direction)])
    rows = np.arange(len(table.negatives), dtype=np.int64)
    if len(rows) > 2 * most:  # look alike at those alone that may be listed
        rows = rows[_chosen(hardest_margin(table), 2 * most, random)]
    depth = min(ranks, table.k)
    found = suspicion(run.dataset.pairs, table, rows, depth, run.vectors)
    whole = Listing(direction, rows, found, np.empty(0, np.int64))
    kept = _chosen(whole.most, most, random)
    whole = Listing(direction, rows[kept], found[kept], whole.detailed)
    return Listing(direction, whole.rows, whole.suspicion, _chosen(whole.most, detailed, random))


def _chosen(by: npt.NDArray[np.floating], most: int, random: np.random.Generator) -> Rows:
    """Positions, in order: all, or the higher half of `most` by value (ties by position), the rest drawn."""
    if len(by) <= most:
        return np.arange(len(by), dtype=np.int64)
    order = np.lexsort((np.arange(len(by)), -by))
    first = (most + 1) // 2
    drawn = random.choice(order[first:], most - first, replace=False)
    return np.sort(np.concatenate([order[:first], drawn]))
