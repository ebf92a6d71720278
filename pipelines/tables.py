"""Plain text tables for a terminal: the plan, and a run's closing summary."""

from __future__ import annotations

from collections.abc import Sequence

from miner.artifacts.command import align
from pipelines.plan import Step
from pipelines.report import RoundView

__all__ = ["plan_table", "size", "summary_table"]

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
    """Per round, the best marked: rsum and R@1 of dev and test, hardness and overlap of the tables, seconds per stage.

    Where contributions were counted, also negatives per query that contribute to the loss, in the batch + offline. With
    tables that an older model mined, also updates between that and the model that training began with.
    """
    counted, stale = any(view.contributing for view in views), any(view.stale_steps for view in views)
    head = ["round"]
    for split in ("dev", "test"):
        head += [f"{split} rsum", "i2t R@1", "t2i R@1"]
    head += ["hardness i2t", "t2i", "overlap i2t", "t2i", "encode s", "index s", "mine s", "fit s", "eval s"]
    head += ["contributing i2t", "t2i"] if counted else []
    head += ["tables' age"] if stale else []
    rows = [head]
    for view in views:
        row = [("best " if view.best else "") + str(view.round)]
        for split in ("dev", "test"):
            found = view.metrics[split]
            row += [f"{found[key]:.1f}" for key in ("rsum", "i2t_r1", "t2i_r1")]
        row += [f"{view.hardness[d]:+.3f}" if d in view.hardness else "-" for d in ("i2t", "t2i")]
        row += [f"{view.overlap[d]:.0%}" if d in view.overlap else "-" for d in ("i2t", "t2i")]
        for works in (("encode",), ("index",), ("tune", "mine"), ("fit",), ("evaluate",)):
            spent = [seconds for stage, seconds in view.seconds.items() if stage.split("-")[0] in works]
            row.append(f"{sum(spent):.1f}" if spent else "-")
        if counted:
            row += [_contributing(view, direction) for direction in ("i2t", "t2i")]
        if stale:
            row.append("-" if view.stale_steps is None else f"{view.stale_steps} steps")
        rows.append(row)
    return align(rows)


def _contributing(view: RoundView, direction: str) -> str:
    keys = [f"{direction}_{negatives}" for negatives in ("online", "offline")]
    return " + ".join(f"{view.contributing[key]:.2f}" for key in keys if key in view.contributing) or "-"
