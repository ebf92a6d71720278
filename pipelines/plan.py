"""What is still to do, and why: declared stages + committed manifests -> steps. Pure; reads nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from miner.artifacts.manifest import Manifest, input_key
from miner.artifacts.pairs import Direction
from pipelines.removed import RECORD, recorded
from pipelines.stages import Stage

__all__ = ["KEY_DIGITS", "Present", "State", "Step", "plan", "ready", "trained_on"]

KEY_DIGITS = 16
Present = Mapping[str, Mapping[str, Manifest]]  # stage folder -> first digits of the input key -> manifest
State = Literal["done", "missing", "stale", "waiting"]


@dataclass(frozen=True)
class Step:
    """A stage and where it stands.

    done: committed from exactly these inputs. missing: ready to run. stale: ready to run, and what is there was made
    from other inputs (`why` names them; it stays where it is). waiting: a parent comes first, so its inputs are not
    known yet. `removed`: done, but `gc` removed the files; made again as soon as a stage that is to run needs them.
    """

    stage: Stage
    state: State
    why: str
    inputs: Mapping[str, Any] | None = None
    manifest: Manifest | None = None
    removed: bool = False

    @cached_property
    def prefix(self) -> str:
        """Folder of the artifact. Only for a step that is not waiting."""
        assert self.inputs is not None, self.stage.name
        whole = self.manifest.input_key if self.manifest is not None else input_key(self.stage.kind, self.inputs)
        return f"{self.stage.folder}/{whole[:KEY_DIGITS]}"


def plan(stages: Sequence[Stage], present: Present) -> list[Step]:
    """One step per stage, in order."""
    steps = _forward(stages, present, {})
    needed = _needed_again(steps)
    return _forward(stages, present, needed) if needed else steps


def ready(steps: Sequence[Step], at_work: Sequence[Step], branches: int) -> list[Step]:
    """What to begin now beside the steps `at_work`: the first that can be, or where there are two `branches`, training
    and refresh, the first of each.

    No round begins before the rounds before it are evaluated: a rule of [stop] may end the run there.
    """
    if branches == 1 and at_work:
        return []
    unevaluated = [step.stage.round for step in steps if step.stage.work == "evaluate" and step.state != "done"]
    last = min(unevaluated, default=max(step.stage.round for step in steps))
    busy = {step.stage.branch for step in at_work}
    found: list[Step] = []
    for step in steps:
        if step.state in ("missing", "stale") and step.stage.round <= last and step.stage.branch not in busy:
            busy.add(step.stage.branch)
            found.append(step)
    return found[:branches]


def trained_on(done: Mapping[str, Step], round: int) -> dict[Direction, Step]:
    """The tables that a round's model is trained on, of steps by their stages' names; none in a round without."""
    fitted = done.get(f"r{round}/fit")
    roles = dict(fitted.stage.parents) if fitted is not None else {}
    return {d: done[roles[d]] for d in get_args(Direction) if roles.get(d) in done}


def _forward(stages: Sequence[Stage], present: Present, needed: Mapping[str, str]) -> list[Step]:
    steps: dict[str, Step] = {}
    for stage in stages:
        steps[stage.name] = _step(stage, steps, present.get(stage.folder, {}), needed.get(stage.name, ""))
    return list(steps.values())


def _needed_again(steps: Sequence[Step]) -> dict[str, str]:
    """Stages whose files were removed and which one that is to run is made from, with the name of that one."""
    wanted: dict[str, str] = {}
    needed = {}
    for step in reversed(steps):
        name = step.stage.name
        if step.removed and name in wanted:
            needed[name] = wanted[name]
        if step.state != "done" or name in needed:
            wanted |= {parent: name for _, parent in step.stage.parents}
    return needed


def _step(stage: Stage, earlier: Mapping[str, Step], here: Mapping[str, Manifest], needed: str) -> Step:
    fingerprints: dict[str, str] = {}
    for role, name in stage.parents:
        parent = earlier[name].manifest
        if parent is None:
            return Step(stage, "waiting", f"after {name}")
        fingerprints[role] = parent.fingerprint
    inputs = stage.inputs(fingerprints)
    key = input_key(stage.kind, inputs)
    found = here.get(key[:KEY_DIGITS])
    if found is not None and found.input_key == key:
        return Step(stage, "done", "made from exactly these inputs", inputs, found)
    gone = recorded(here.get(RECORD + key[:KEY_DIGITS]))
    if gone is not None and gone.input_key == key:
        if needed:
            return Step(stage, "missing", f"removed by gc; {needed} needs it", inputs)
        return Step(stage, "done", "removed by gc; nothing that is to run needs it", inputs, gone, removed=True)
    others = [old for name, old in here.items() if not name.startswith(RECORD)]
    if not others:
        return Step(stage, "missing", "not made yet", inputs)
    changes = min((list(_changes(old.inputs, inputs)) for old in others), key=len)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return Step(stage, "stale", f"changed: {shown}", inputs)


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two inputs differ, as `parameters.fit.lr: 0.0002 -> 0.0005`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:8] + "…"
