"""The top of the page: the table of rounds, the figures of the last one, and two small line charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Chart", "Column", "Group", "Series", "chart", "columns", "flatten"]

WIDTH, HEIGHT = 400, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 46, 20, 26


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


@dataclass(frozen=True)
class Series:
    """One line: a name for people, a class for the style sheet, and a value per round (None where there is none)."""

    name: str
    style: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """A line chart in units of its view box; `dots` are (x, y, title), `label` is text at the end of the line."""

    title: str
    summary: str
    ticks: tuple[tuple[float, str], ...]
    rounds: tuple[tuple[float, str], ...]
    lines: tuple[dict[str, Any], ...]
    zero: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """Text of a figure; a dash for None, nan and infinity, and a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def columns(
    metrics: Sequence[Mapping[str, Mapping[str, float]]],
    hardness: Sequence[Mapping[Any, float]],
    overlap: Sequence[Mapping[Any, float]],
    seconds: Sequence[Mapping[str, float]],
) -> list[Group]:
    """Groups of columns of the table of rounds; a metric, direction or stage that no round has gets no column."""
    splits = sorted(_keys(metrics), key=lambda split: ["dev", "test"].index(split) if split in ("dev", "test") else 2)
    groups = []
    for heading, key in (("rsum", "rsum"), ("R@1 image → text", "i2t_r1"), ("R@1 text → image", "t2i_r1")):
        values = {split: [of.get(split, {}).get(key) for of in metrics] for split in splits}
        groups.append(
            Group(heading, tuple(Column(split, _cells(found, 1)) for split, found in values.items() if _any(found)))
        )
    for heading, by_direction, decimals, scale in (("Hardness", hardness, 3, 1), ("Overlap", overlap, 0, 100)):
        found = []
        for direction, name in (("i2t", "img → txt"), ("t2i", "txt → img")):
            values_ = [of.get(direction) for of in by_direction]
            if _any(values_):
                scaled = [None if value is None else value * scale for value in values_]
                cells = _cells(scaled, decimals, signed=heading == "Hardness")
                percent = tuple(cell if cell == "–" or scale == 1 else cell + " %" for cell in cells)
                found.append(Column(name, percent))
        groups.append(Group(heading, tuple(found)))
    # A round without mining has fewer stages: the fullest round gives the order.
    in_order = _keys(sorted(seconds, key=len, reverse=True))
    stages = [Column(stage, _cells([of.get(stage) for of in seconds], 1)) for stage in in_order]
    if stages:
        stages.append(Column("total", _cells([sum(of.values()) if of else None for of in seconds], 1)))
    groups.append(Group("Seconds", tuple(stages)))
    return [group for group in groups if group.columns]


def chart(title: str, rounds: Sequence[int], series: Iterable[Series], decimals: int, *, signed: bool = False) -> Chart:
    """Geometry of a line chart; rounds lie at equal distances, a gap interrupts a line."""
    kept = [one for one in series if _any(one.values)]
    finite = [value for one in kept for value in one.values if value is not None and math.isfinite(value)]
    ticks = _ticks(min(finite), max(finite)) if finite else [0.0, 1.0]
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    def x(index: int) -> float:
        share = index / (len(rounds) - 1) if len(rounds) > 1 else 0.5
        return round(_LEFT + 12 + share * (WIDTH - _LEFT - _RIGHT - 24), 1)

    lines = []
    for one in kept:
        runs: list[str] = []
        dots: list[tuple[float, float, str]] = []
        for index, value in enumerate(one.values):
            if value is None or not math.isfinite(value):
                runs.append("")
                continue
            here = f"{x(index)},{y(value)}"
            runs = [*runs[:-1], f"{runs[-1]} {here}"] if runs and runs[-1] else [*runs, here]
            label = f"{one.name}, round {rounds[index]}: {number(value, decimals, signed=signed)}"
            dots.append((x(index), y(value), label))
        last = next(value for value in reversed(one.values) if value is not None and math.isfinite(value))
        lines.append(
            {
                "name": one.name,
                "style": one.style,
                "runs": [run for run in runs if " " in run],
                "dots": dots,
                "label": number(last, decimals, signed=signed),
                "label_x": dots[-1][0] + 8,
                "label_y": dots[-1][1] + 4,
            }
        )
    _separate(lines)
    spoken = []
    for one in kept:
        values = zip(rounds, one.values, strict=True)
        told = [f"round {round_} {number(value, decimals, signed=signed)}" for round_, value in values]
        spoken.append(f"{one.name}: {', '.join(told)}")
    tick_decimals = max(0, -math.floor(math.log10((high - low) / max(len(ticks) - 1, 1)) + 1e-9))
    return Chart(
        title,
        "; ".join(spoken),
        tuple((y(tick), number(tick, tick_decimals)) for tick in ticks),
        tuple((x(index), str(round_)) for index, round_ in enumerate(rounds)),
        tuple(lines),
        y(0.0) if low < 0 < high else None,
    )


def _separate(lines: list[dict[str, Any]], gap: float = 14.0) -> None:
    """Move the labels at the line ends apart, downwards, then back up into the frame."""
    ordered = sorted(lines, key=lambda line: line["label_y"])
    for above, line in itertools.pairwise(ordered):
        line["label_y"] = max(line["label_y"], above["label_y"] + gap)
    floor = HEIGHT - _BOTTOM + 4.0
    for line in reversed(ordered):
        line["label_y"] = round(min(line["label_y"], floor), 1)
        floor = line["label_y"] - gap


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers around [low, high]."""
    span = high - low if high > low else max(abs(high), 1.0) * 0.1
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


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
