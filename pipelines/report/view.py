"""What the page is made from: a run as far as it has come, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction, Side

if TYPE_CHECKING:
    from miner.artifacts.dropped import DroppedRows
    from miner.artifacts.negatives import NegativeTable
    from trainer.data import Dataset

__all__ = ["DIRECTIONS", "RoundView", "RunView"]

DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


@dataclass(frozen=True)
class RoundView:
    """One round as the page shows it.

    `metrics`: split -> {"rsum", "i2t_r1", ...} in percent. `tables`: what the round trained on, by direction, none in a
    round without mining; `hardness` (mean over the table, a difference of similarities) and `overlap` (share that the
    previous round's had too, 0 to 1; not of the same table again) likewise. `stale_steps`: updates between the model
    that mined the tables and the one that training began with. `recall`: share of the hardest negatives that the search
    found, measured on a sample, of tables whose search may miss some. `seconds`: stage -> wall clock. `contributing`,
    if it was asked for ([analyze]): negatives per query that contribute to the loss, see
    `pipelines.jobs.analyze.counted`. `best`: no round has a higher dev rsum. `epochs`: a line of `EpochLog.history` for
    each of the round's. `bytes`: stage -> what it stored. `gpu_hours`: of its stages, killed attempts too (see
    `pipelines.evidence`).
    """

    round: int
    metrics: dict[str, dict[str, float]]
    tables: dict[Direction, NegativeTable]
    hardness: dict[Direction, float]
    overlap: dict[Direction, float]
    seconds: dict[str, float]
    contributing: dict[str, float] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    bytes: Mapping[str, int] = field(default_factory=dict)
    best: bool = False
    stale_steps: int | None = None
    recall: Mapping[Direction, float] = field(default_factory=dict)
    gpu_hours: float | None = None


@dataclass(frozen=True)
class RunView:
    """A run. `dataset` is the split that was mined; `dropped` is of the last round with tables; `vectors` (items, dim)
    by side are those its tables were mined in, empty where they are gone."""

    dataset: Dataset
    rounds: Sequence[RoundView]
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[Direction, DroppedRows] = field(default_factory=dict)
    vectors: Mapping[Side, npt.NDArray[np.float32]] = field(default_factory=dict)
    seed: int = 0

    def tables(self, direction: Direction) -> list[tuple[int, NegativeTable]]:
        """(round, table) of the rounds that mined, in order."""
        return [(view.round, view.tables[direction]) for view in self.rounds if direction in view.tables]
