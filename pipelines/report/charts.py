"""The charts: what each shows, as plain values. charts.js draws them with Plotly, in the colours of the page.

A chart is {id, title, summary, x, y, kind: "lines" | "bars", round: whether x counts rounds, series: [{name, x, y,
colour, dash}], marks: [{x, label}]}; colours are numbers of the style sheet's --c0, --c1, ...; `summary` is read out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.report.overview import number
from pipelines.report.view import DIRECTIONS, RoundView, RunView

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable

__all__ = ["charts", "score_curves"]

Chart = dict[str, Any]

NAMES = {"i2t": "image → text", "t2i": "text → image"}
_BINS = 60
_PERCENTILES = (75, 90, 95)


def charts(rounds: Sequence[RoundView]) -> list[Chart]:
    """The overview of the rounds; what nobody measured has no chart."""
    made = [
        *_metrics(rounds), _loss(rounds), *(_hardness(rounds, d) for d in DIRECTIONS), _contributing(rounds),
        _overlap(rounds), _stages("seconds", "Seconds per stage", "seconds", [view.seconds for view in rounds], rounds),
        _stages("bytes", "Stored per stage", "MB",
                [{stage: size / 1e6 for stage, size in view.bytes.items()} for view in rounds], rounds),
    ]  # fmt: skip
    return [chart for chart in made if chart["series"]]


def score_curves(run: RunView) -> list[Chart]:
    """By direction: the scores of the last table, by rank, beside those of the lowest positives, with thresholds."""
    made = []
    for direction in DIRECTIONS:
        tables = run.tables(direction)
        if tables:
            made.append(_curve(direction, *tables[-1], run.settings))
    return made


def _metrics(rounds: Sequence[RoundView]) -> Iterable[Chart]:
    numbers = [view.round for view in rounds]
    rsum = [
        _series(split, numbers, [view.metrics.get(split, {}).get("rsum") for view in rounds], colour)
        for colour, split in enumerate(("test", "dev"))
    ]
    yield _chart("rsum", "rsum", rsum, y="rsum", round=True)
    for split in ("test", "dev"):
        recall = [
            _series(
                f"{NAMES[direction]} R@{k}",
                numbers,
                [view.metrics.get(split, {}).get(f"{direction}_r{k}") for view in rounds],
                2 * at,
                dash=dash,
            )
            for at, direction in enumerate(DIRECTIONS)
            for k, dash in ((1, "solid"), (5, "dash"), (10, "dot"))
        ]
        yield _chart(f"recall-{split}", f"R@K, {split}", recall, y="percent", round=True)


def _loss(rounds: Sequence[RoundView]) -> Chart:
    epochs = [line for view in rounds for line in view.epochs]
    x = list(range(1, len(epochs) + 1))
    parts = list(dict.fromkeys(part for line in epochs for part in line["parts"]))
    series = [_series("loss", x, [line["loss"] for line in epochs], 0)]
    series += [
        _series(part.replace("_", " "), x, [line["parts"].get(part) for line in epochs], at, dash="dot")
        for at, part in enumerate(parts, 1)
    ]
    begins = np.cumsum([0, *(len(view.epochs) for view in rounds)]).tolist()
    marks = [
        {"x": begin + 0.5, "label": f"round {view.round}"}
        for begin, view in zip(begins, rounds, strict=False)
        if begin and view.epochs
    ]
    return {**_chart("loss", "Loss and its parts by epoch", series, x="epoch"), "marks": marks}


def _hardness(rounds: Sequence[RoundView], direction: Any) -> Chart:
    values = {}
    for view in rounds:
        if direction in view.tables:
            table = view.tables[direction]
            found = (table.scores - table.lowest_positive[:, None]).ravel()
            values[f"round {view.round}"] = found[np.isfinite(found)]
    chart = _chart(
        f"hardness-{direction}", f"Hardness of the negatives, {NAMES[direction]}", _densities(values),
        x="score − lowest positive", y="share",
    )  # fmt: skip
    return {**chart, "marks": [{"x": 0, "label": "lowest positive"}]}


def _contributing(rounds: Sequence[RoundView]) -> Chart:
    keys = list(dict.fromkeys(key for view in rounds for key in view.contributing))
    series = [
        _series(
            f"{NAMES[key[:3]]}, {key[4:]}",
            [view.round for view in rounds],
            [view.contributing.get(key) for view in rounds],
            2 * (key[:3] == "t2i"),
            dash="dot" if key.endswith("offline") else "solid",
        )
        for key in keys
    ]
    return _chart("cocos", "Contributing negatives per query (COCOS)", series, y="negatives", round=True)


def _overlap(rounds: Sequence[RoundView]) -> Chart:
    series = [
        _series(
            NAMES[direction],
            [view.round for view in rounds],
            [100 * view.overlap[direction] if direction in view.overlap else None for view in rounds],
            2 * at,
        )
        for at, direction in enumerate(DIRECTIONS)
    ]
    return _chart("overlap", "Negatives that the table before had too", series, y="percent", round=True)


def _stages(
    name: str, title: str, unit: str, by_stage: Sequence[Mapping[str, float]], rounds: Sequence[RoundView]
) -> Chart:
    # A round without mining has fewer stages: the fullest round gives the order.
    stages = list(dict.fromkeys(stage for of in sorted(by_stage, key=len, reverse=True) for stage in of))
    x = [view.round for view in rounds]
    series = [_series(stage, x, [of.get(stage) for of in by_stage], at) for at, stage in enumerate(stages)]
    return _chart(name, title, series, y=unit, kind="bars", round=True)


def _curve(direction: Any, round_: int, table: NegativeTable, settings: Mapping[str, Any]) -> Chart:
    lowest = table.lowest_positive[np.isfinite(table.lowest_positive)]
    values = {"lowest positive": lowest}
    for rank in sorted({1, 10, table.k}):
        if rank <= table.k:
            found = table.scores[:, rank - 1]
            values[f"negative {rank}"] = found[np.isfinite(found)]
    chart = _chart(
        f"scores-{direction}", f"Scores of round {round_}, {NAMES[direction]}", _densities(values), x="score", y="share"
    )
    marks = []
    if len(lowest):
        for percent in _PERCENTILES:
            bound = float(np.percentile(lowest, percent))
            marks.append({"x": round(bound, 4), "label": f"max-score at {percent}% of positives: {number(bound, 3)}"})
    for rule in (settings.get("mine") or {}).get("rules") or ():
        marks += _said(str(rule), lowest)
    return {**chart, "marks": marks}


def _said(rule: str, lowest: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """Where the run's own thresholds on the score lie; a margin at the median of the lowest positives."""
    from miner.filters import chosen

    marks = []
    for each in chosen([rule]):
        settings = each.settings()
        middle = float(np.median(lowest)) if len(lowest) else math.nan
        bounds = {
            "max-score": settings.get("score"),
            "min-score": settings.get("score"),
            "relative-margin": middle - settings.get("margin", 0) * abs(middle),
            "absolute-margin": middle - settings.get("margin", 0),
        }
        bound = bounds.get(settings["rule"])
        if isinstance(bound, float) and math.isfinite(bound):
            marks.append({"x": round(bound, 4), "label": f"{rule}: {number(bound, 3)}"})
    return marks


def _densities(values: Mapping[str, npt.NDArray[np.float32]]) -> list[Chart]:
    """A line each, of the share of values per bin; the bins are the same."""
    known = {name: each for name, each in values.items() if len(each)}
    if not known:
        return []
    low, high = (float(f(np.quantile(each, q) for each in known.values())) for f, q in ((min, 0.001), (max, 0.999)))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    middle = [round(float(x), 5) for x in (edges[1:] + edges[:-1]) / 2]
    found = []
    for at, (name, each) in enumerate(known.items()):
        share = np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0] / len(each)
        line = _series(name, middle, [round(float(y), 5) for y in share], at)
        found.append({**line, "said": f"median {number(float(np.median(each)), 3, signed=True)}"})
    return found


def _series(name: str, x: Sequence[float], y: Sequence[float | None], colour: int, *, dash: str = "solid") -> Chart:
    known = [None if value is None or not math.isfinite(value) else round(float(value), 6) for value in y]
    return {"name": name, "x": list(x), "y": known, "colour": colour, "dash": dash}


def _chart(
    id: str, title: str, series: Sequence[Chart], *, x: str = "", y: str = "", kind: str = "lines", round: bool = False
) -> Chart:
    kept = [one for one in series if any(value is not None for value in one["y"])]
    spoken = []
    for one in kept:
        told = one.pop("said", None) or ", ".join(
            f"{at:g}: {number(value, 2)}" for at, value in zip(one["x"], one["y"], strict=True) if value is not None
        )
        spoken.append(f"{one['name']}: {told}")
    return {
        "id": id, "title": title, "summary": "; ".join(spoken), "x": "round" if round else x, "y": y, "kind": kind,
        "round": round, "series": kept, "marks": [],
    }  # fmt: skip
