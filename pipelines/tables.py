"""Plain text tables for a terminal: the plan, and a run's closing summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from miner.artifacts.command import align
from miner.artifacts.pairs import Direction
from pipelines.plan import Step
from pipelines.report import RoundView

__all__ = ["plan_table", "size", "summary_table"]

_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def size(num_bytes: float) -> str:
    """Bytes for people: `3.4 MiB`."""
    for unit in _BINARY[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} {_BINARY[-1]}"


def plan_table(steps: Sequence[Step]) -> str:
    """Every stage with its state, what it needs and why."""
    rows = [["stage", "state", "tasks", "disk", "memory", "why"]]
    for step in steps:
        stage = step.stage
        cost = [
            str(stage.parts if stage.unit == "shard" else 1),
            size(stage.disk) if stage.disk else "-",
            size(stage.memory) if stage.memory else "-",
        ]
        rows.append([stage.name, "reuse" if step.state == "done" else step.state, *cost, step.why])
    table = [row[:2] + [c.rjust(9) for c in row[2:5]] + [row[5]] for row in rows]
    todo = [step.stage for step in steps if step.state != "done"]
    disk, memory = sum(stage.disk for stage in todo), max((stage.memory for stage in todo), default=0)
    total = f"{len(steps) - len(todo)} stages reused, {len(todo)} to run"
    if todo:
        total += f": about {size(disk)} of disk, {size(memory)} of memory at most per task"
    return align(table, left=6) + "\n\n" + total + "."


def summary_table(views: Sequence[RoundView]) -> str:
    """Per round, the best marked: rsum and R@1 of dev and test; hardness and overlap of the tables; seconds per stage.

    Of tables whose search may miss some, also the share of the hardest that it found, measured on a sample.

    Where contributions were counted, also negatives per query that contribute to the loss, in the batch + offline. With
    tables that an older model mined, also updates between that and the model that training began with.
    """
    scores = [["round", "dev rsum", "i2t R@1", "t2i R@1", "test rsum", "i2t R@1", "t2i R@1"]]
    mined = [["round", "hardness i2t", "t2i", "overlap i2t", "t2i"]]
    spent = [["round", "encode s", "index s", "mine s", "fit s", "evaluate s"]]
    counted, stale = any(view.contributing for view in views), any(view.stale_steps for view in views)
    searched = any(view.recall for view in views)
    mined[0] += ["search found i2t", "t2i"] * searched
    mined[0] += ["contributing i2t", "t2i"] * counted + ["tables' age"] * stale
    for view in views:
        name = ("best " if view.best else "") + str(view.round)
        found = [view.metrics[split][key] for split in ("dev", "test") for key in ("rsum", "i2t_r1", "t2i_r1")]
        scores.append([name, *(f"{value:.1f}" for value in found)])
        row = [f"{view.hardness[d]:+.3f}" if d in view.hardness else "-" for d in _DIRECTIONS]
        row += [f"{view.overlap[d]:.0%}" if d in view.overlap else "-" for d in _DIRECTIONS]
        row += [f"{view.recall[d]:.1%}" if d in view.recall else "-" for d in _DIRECTIONS] * searched
        row += [_contributing(view, direction) for direction in _DIRECTIONS] * counted
        row += ["-" if view.stale_steps is None else f"{view.stale_steps} steps"] * stale
        if {*row} != {"-"}:
            mined.append([name, *row])
        seconds = []
        for works in (("encode",), ("index",), ("tune", "mine"), ("fit",), ("evaluate",)):
            took = [seconds for stage, seconds in view.seconds.items() if stage.split("-")[0] in works]
            seconds.append(f"{sum(took):.1f}" if took else "-")
        spent.append([name, *seconds])
    return "\n\n".join(align(table) for table in (scores, mined, spent) if len(table) > 1)


def _contributing(view: RoundView, direction: str) -> str:
    keys = [f"{direction}_{negatives}" for negatives in ("online", "offline")]
    return " + ".join(f"{view.contributing[key]:.2f}" for key in keys if key in view.contributing) or "-"
