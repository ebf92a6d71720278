"""What packages above `trainer` lend to its command line, found by entry points, so that no import goes upwards.

quintain.trainer.commands   click commands of `trainer`
quintain.trainer.rounds     functions (place of a run, dataset) -> list of `Round`: the rounds of a run
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from miner.artifacts.pairs import Direction
    from trainer.checkpoint import Checkpoint

__all__ = ["Round", "plugged_in"]


@dataclass(frozen=True)
class Round:
    """A finished round of a run: the model it ended with, and the tables it was trained on, if any."""

    label: str
    checkpoint: Checkpoint
    tables: Mapping[Direction, Any] | None


@cache
def plugged_in(what: Literal["commands", "rounds"]) -> dict[str, EntryPoint]:
    """Entry points by name."""
    return {point.name: point for point in entry_points(group=f"quintain.trainer.{what}")}
