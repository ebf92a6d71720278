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
from miner.artifacts.store import Store
from pipelines.compare.comparison import Member
from pipelines.jobs.analyze import counted
from pipelines.log import lines as log_lines
from pipelines.plan import Step
from pipelines.summary import seconds_by_prefix
from trainer import collapse

__all__ = ["NOTE", "Interval", "Summary", "interval", "member_rows", "quantile", "summarize", "table"]

# Two-sided 97.5% quantiles of Student's t by degrees of freedom.
T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.959964
NOTE = """\
rsum and R@1: mean over seeds and 95% interval (Student's t); against the first: paired by seed.
ms/step: last round, warm-up apart, beside the comparison's other trainings; mining s: encode, index, mine, all rounds.
contributing: negatives per query with weight above 0.01, after the last round, in each loss's own unit: in the batch
+ offline. collapsed: seeds with a collapse warning in any epoch. Updates are equal, samples are not: smoothap takes
images with all their captions, offline negatives come on top of a batch."""


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and the half width of its 95% interval (Student's t; infinite for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isinf(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"


@dataclass(frozen=True)
class Summary:
    """One objective, means over `seeds`; `collapsed` is how many of them warned of a collapse in any epoch.

    `against` is the paired difference of test rsum to the first objective, None for itself. `milliseconds` is per step,
    `mining_seconds` the mining of all rounds; None or 0 where nothing was timed or mined. `online` and `offline`: by
    direction, negatives per query whose weight in the loss's own unit is above 0.01.
    """

    label: str
    rsum: Interval
    against: Interval | None
    dev_rsum: Interval
    i2t_r1: Interval
    t2i_r1: Interval
    milliseconds: float | None
    mining_seconds: float
    updates: int
    online: Mapping[str, float]
    offline: Mapping[str, float]
    collapsed: int
    seeds: int


def interval(values: Sequence[float]) -> Interval:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.inf)
    return Interval(mean, quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))


def quantile(freedom: int) -> float:
    """Two-sided 97.5% quantile of Student's t; beyond the table by its expansion around the normal distribution."""
    if freedom < len(T):
        return T[freedom]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def member_rows(members: Sequence[Member], every: Sequence[Sequence[Step]], store: Store) -> list[dict[str, Any]]:
    """One flat row per finished member: metrics after the last round, times, counts, epochs with a collapse warning.

    `ms_per_step` is of the last round's epochs, warm-up apart: earlier rounds may have trained on another loss.
    `mining_seconds` is all of encode, index and mine.
    """
    log, seconds = log_lines(store), seconds_by_prefix(store)
    epochs: dict[str, dict[int, dict[str, Any]]] = {}
    for line in log:
        if line["event"] == "epoch":
            epochs.setdefault(line["prefix"], {})[line["epoch"]] = line
    rows = []
    for member, steps in zip(members, every, strict=True):
        if any(step.manifest is None for step in steps):
            continue
        fits = [step for step in steps if step.stage.work == "fit"]
        evaluated = max((s for s in steps if s.stage.work == "evaluate"), key=lambda s: s.stage.round)
        assert evaluated.manifest is not None
        metrics = evaluated.manifest.meta["metrics"]
        histories = [_history(store, fit) for fit in fits]
        history = [line for lines in histories for line in lines]
        last = epochs.get(fits[-1].prefix, {})
        timed = [last[line["epoch"]] for line in histories[-1] if not line["warm_up"] and line["epoch"] in last]
        row: dict[str, Any] = {"objective": member.label, "seed": member.seed}
        row |= {f"{split}_{name}": value for split in ("dev", "test") for name, value in metrics[split].items()}
        num_steps = sum(line["steps"] for line in timed)
        row["ms_per_step"] = 1000 * sum(line["seconds"] for line in timed) / num_steps if num_steps else None
        mining = [step.prefix for step in steps if step.stage.work in ("encode", "index", "tune", "mine")]
        row["mining_seconds"] = sum(seconds.get(prefix, 0.0) for prefix in mining)
        row["updates"] = sum(line["steps"] for line in history)
        # Judged by what was observed, so that all members are judged alike.
        row["collapses"] = sum(collapse.collapsed(line, has_warm_up=True) is not None for line in history)
        looked = max((s for s in steps if s.stage.work == "analyze"), key=lambda s: s.stage.round)
        assert looked.manifest is not None
        rows.append(row | counted(Artifact(store, looked.prefix, looked.manifest)))
    return rows


def _history(store: Store, fit: Step) -> list[dict[str, Any]]:
    assert fit.manifest is not None
    found: list[dict[str, Any]] = json.loads(Artifact(store, fit.prefix, fit.manifest).read("history.json"))["epochs"]
    return found


def summarize(rows: Sequence[Mapping[str, Any]], labels: Sequence[str] = ()) -> list[Summary]:
    """One summary per objective that has rows, in the order of `labels` [default: of the rows]; differences are to the
    first label, paired by seed, also when it has no row for some seed, or none at all."""
    labels = labels or list(dict.fromkeys(row["objective"] for row in rows))
    by_label = {label: [row for row in rows if row["objective"] == label] for label in labels}
    first = by_label[labels[0]] if labels else []
    reference = {row["seed"]: row["test_rsum"] for row in first}
    found = []
    for label, mine in by_label.items():
        if not mine:
            continue
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
                statistics.fmean(row["mining_seconds"] for row in mine),
                mine[0]["updates"],
                counted("online"),
                counted("offline"),
                sum(row["collapses"] > 0 for row in mine),
                len(mine),
            )
        )
    return found


def table(summaries: Sequence[Summary], *, markdown: bool = False) -> str:
    """The comparison for a terminal, or as a Markdown table."""
    head = [
        "objective", "test rsum", "against the first", "i2t R@1", "t2i R@1", "dev rsum", "ms/step", "mining s",
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
            f"{found.mining_seconds:.1f}" if found.mining_seconds else "-",
            _contributing(found, "i2t"), _contributing(found, "t2i"), f"{found.collapsed} of {found.seeds}",
        ])  # fmt: skip
    if not markdown:
        return align(lines)
    lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _contributing(found: Summary, direction: str) -> str:
    """`0.6 + 0.1`: in the batch, and offline."""
    parts = [f"{counts[direction]:.2f}" for counts in (found.online, found.offline) if direction in counts]
    return " + ".join(parts) or "-"
