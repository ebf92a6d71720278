"""What a comparison found: figures of every member, and of every objective with 95% intervals over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miner.artifacts.command import align
from miner.artifacts.manifest import Artifact
from miner.artifacts.store import LocalStore
from pipelines.compare import Member
from pipelines.jobs.analyze import COUNTS
from pipelines.plan import Step
from pipelines.summary import log_lines

__all__ = ["Interval", "Summary", "interval", "member_rows", "summarize", "table"]

# Two-sided 97.5% quantiles of Student's t by degrees of freedom.
T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
COUNTED_AT = 0.01


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and the half width of its 95% interval (Student's t; infinite for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isinf(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"


@dataclass(frozen=True)
class Summary:
    """One objective. `against` is the paired difference of test rsum to the first objective, None for itself."""

    label: str
    rsum: Interval
    against: Interval | None
    dev_rsum: Interval
    i2t_r1: Interval
    t2i_r1: Interval
    milliseconds: float | None
    updates: int
    online: Mapping[str, float]
    offline: Mapping[str, float]
    collapses: int


def interval(values: Sequence[float]) -> Interval:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.inf)
    quantile = T[len(values) - 1] if len(values) <= len(T) else 1.96
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def member_rows(members: Sequence[Member], every: Sequence[Sequence[Step]], store: LocalStore) -> list[dict[str, Any]]:
    """One flat row per finished member: metrics after the last round, time per step, counts, collapse warnings."""
    epochs: dict[str, list[dict[str, Any]]] = {}
    for line in log_lines(store):
        if line["event"] == "epoch":
            epochs.setdefault(line["prefix"], []).append(line)
    rows = []
    for member, steps in zip(members, every, strict=True):
        if any(step.manifest is None for step in steps):
            continue
        fits = [step for step in steps if step.stage.work == "fit"]
        evaluated = max((s for s in steps if s.stage.work == "evaluate"), key=lambda s: s.stage.round)
        assert evaluated.manifest is not None
        metrics = evaluated.manifest.meta["metrics"]
        timed = [line for fit in fits for line in epochs.get(fit.prefix, [])]
        history = [line for fit in fits for line in _history(store, fit)]
        row: dict[str, Any] = {"objective": member.label, "seed": member.seed}
        row |= {f"{split}_{name}": value for split in ("dev", "test") for name, value in metrics[split].items()}
        # Epochs of one loss differ in cost (warm-up, online rounds): the mean is over all of them.
        num_steps = sum(line["steps"] for line in timed)
        row["ms_per_step"] = 1000 * sum(line["seconds"] for line in timed) / num_steps if num_steps else None
        row["updates"] = sum(line["steps"] for line in history)
        row["collapses"] = sum(line["warning"] is not None for line in history)
        rows.append(row | _counts(store, steps))
    return rows


def _history(store: LocalStore, fit: Step) -> list[dict[str, Any]]:
    assert fit.manifest is not None
    found: list[dict[str, Any]] = json.loads(Artifact(store, fit.prefix, fit.manifest).read("history.json"))["epochs"]
    return found


def _counts(store: LocalStore, steps: Sequence[Step]) -> dict[str, Any]:
    """Contributing negatives per query at weight 0.01 after the last round: {"i2t_online": ..., "t2i_offline": ...}."""
    last = max((s for s in steps if s.stage.work == "analyze"), key=lambda s: s.stage.round)
    assert last.manifest is not None
    rows = json.loads(Artifact(store, last.prefix, last.manifest).read(COUNTS))["rows"]
    return {
        f"{row['direction']}_{row['negatives']}": row["share"]
        for row in rows
        if row["threshold"] == COUNTED_AT and row["of_chance"] is None and row["direction"] != "both"
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """One summary per objective, in the order of the file; differences are to the first, paired by seed."""
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["objective"], []).append(row)
    first = next(iter(by_label.values()), [])
    reference = {row["seed"]: row["test_rsum"] for row in first}
    found = []
    for label, mine in by_label.items():
        paired = [row["test_rsum"] - reference[row["seed"]] for row in mine if row["seed"] in reference]
        timed = [row["ms_per_step"] for row in mine if row["ms_per_step"] is not None]

        def over_seeds(name: str, mine: list[Mapping[str, Any]] = mine) -> Interval:
            return interval([row[name] for row in mine])

        def counted(negatives: str, mine: list[Mapping[str, Any]] = mine) -> dict[str, float]:
            keys = [f"{direction}_{negatives}" for direction in ("i2t", "t2i")]
            return {key[:3]: statistics.fmean(row[key] for row in mine) for key in keys if all(key in r for r in mine)}

        found.append(
            Summary(
                label,
                over_seeds("test_rsum"),
                interval(paired) if mine is not first and paired else None,
                over_seeds("dev_rsum"),
                over_seeds("test_i2t_r1"),
                over_seeds("test_t2i_r1"),
                statistics.fmean(timed) if timed else None,
                mine[0]["updates"],
                counted("online"),
                counted("offline"),
                sum(row["collapses"] for row in mine),
            )
        )
    return found


def table(summaries: Sequence[Summary], *, markdown: bool = False) -> str:
    """The comparison for a terminal, or as a Markdown table."""
    head = [
        "objective", "test rsum", "against the first", "i2t R@1", "t2i R@1", "dev rsum", "ms/step",
        "contributing i2t", "t2i", "collapsed",
    ]  # fmt: skip
    lines = [head]
    for found in summaries:
        against = "-" if found.against is None else f"{found.against.mean:+.1f}"
        if found.against is not None and not math.isinf(found.against.half):
            against += f" ± {found.against.half:.1f}"
        lines.append([
            found.label, str(found.rsum), against, str(found.i2t_r1), str(found.t2i_r1), str(found.dev_rsum),
            "-" if found.milliseconds is None else f"{found.milliseconds:.1f}",
            _contributing(found, "i2t"), _contributing(found, "t2i"), str(found.collapses),
        ])  # fmt: skip
    if not markdown:
        return align(lines)
    lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _contributing(found: Summary, direction: str) -> str:
    """`0.6 + 0.1`: in the batch, and offline."""
    parts = [f"{counts[direction]:.2f}" for counts in (found.online, found.offline) if direction in counts]
    return " + ".join(parts) or "-"
