"""The top of the page: the table of rounds and the settings, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.view import RoundView

__all__ = ["Column", "Group", "columns", "flatten", "number"]


@dataclass(frozen=True)
class Column:
    """One column: a heading and a cell per round, already text."""

    heading: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Columns under one heading."""

    heading: str
    columns: tuple[Column, ...]


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """Text of a figure; a dash for None, nan and infinity, and a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def columns(rounds: Sequence[RoundView]) -> list[Group]:
    """Groups of columns of the table of rounds; a metric, direction or stage that no round has gets no column."""
    metrics, seconds = [view.metrics for view in rounds], [view.seconds for view in rounds]
    of_tables = (
        ("Hardness", [view.hardness for view in rounds], 3, 1),
        ("Overlap", [view.overlap for view in rounds], 0, 100),
        ("Found by the search", [view.recall for view in rounds], 1, 100),
    )
    splits = sorted(_keys(metrics), key=lambda split: ["dev", "test"].index(split) if split in ("dev", "test") else 2)
    groups = []
    for heading, key in (("rsum", "rsum"), ("R@1 image → text", "i2t_r1"), ("R@1 text → image", "t2i_r1")):
        values = {split: [of.get(split, {}).get(key) for of in metrics] for split in splits}
        groups.append(
            Group(heading, tuple(Column(split, _cells(found, 1)) for split, found in values.items() if _any(found)))
        )
    for heading, by_direction, decimals, scale in of_tables:
        found = []
        for direction, name in (("i2t", "img → txt"), ("t2i", "txt → img")):
            values_ = [of.get(direction) for of in by_direction]  # type: ignore[call-overload]  # one of the two
            if _any(values_):
                scaled = [None if value is None else value * scale for value in values_]
                cells = _cells(scaled, decimals, signed=heading == "Hardness")
                percent = tuple(cell if cell == "–" or scale == 1 else cell + " %" for cell in cells)
                found.append(Column(name, percent))
        groups.append(Group(heading, tuple(found)))
    stale = [view.stale_steps for view in rounds]
    if any(stale):
        groups.append(Group("Tables", (Column("steps old", _cells(stale, 0)),)))
    # A round without mining has fewer stages: the fullest round gives the order.
    in_order = _keys(sorted(seconds, key=len, reverse=True))
    stages = [Column(stage, _cells([of.get(stage) for of in seconds], 1)) for stage in in_order]
    if stages:
        stages.append(Column("total", _cells([sum(of.values()) if of else None for of in seconds], 1)))
    groups.append(Group("Seconds", tuple(stages)))
    hours = [view.gpu_hours for view in rounds]
    if any(hours):
        groups.append(Group("Cost", (Column("GPU-hours", _cells(hours, 3)),)))
    return [group for group in groups if group.columns]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as [("a.b", text)], in the order given."""
    found: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found.extend(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(map(str, value)) or "none"))
        else:
            found.append((name, "none" if value is None or value == {} else str(value)))
    return found


def _keys(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Keys of all rounds in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _any(values: Sequence[float | None]) -> bool:
    return any(value is not None and math.isfinite(value) for value in values)


def _cells(values: Sequence[float | None], decimals: int, *, signed: bool = False) -> tuple[str, ...]:
    return tuple(number(value, decimals, signed=signed) for value in values)
