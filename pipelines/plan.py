"""What is still to do, and why: declared stages + committed manifests -> steps. Pure; reads nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from miner.artifacts.manifest import Manifest, input_key
from pipelines.stages import Stage

__all__ = ["KEY_DIGITS", "Present", "State", "Step", "plan"]

KEY_DIGITS = 16
Present = Mapping[str, Mapping[str, Manifest]]  # stage folder -> first digits of the input key -> manifest
State = Literal["done", "missing", "stale", "waiting"]


@dataclass(frozen=True)
class Step:
    """A stage and where it stands.

    done: committed from exactly these inputs. missing: ready to run. stale: ready to run, and what is there was made
    from other inputs (`why` names them; it stays where it is). waiting: a parent comes first, so its inputs are not
    known yet.
    """

    stage: Stage
    state: State
    why: str
    inputs: Mapping[str, Any] | None = None
    manifest: Manifest | None = None

    @cached_property
    def prefix(self) -> str:
        """Folder of the artifact. Only for a step that is not waiting."""
        assert self.inputs is not None, self.stage.name
        whole = self.manifest.input_key if self.manifest is not None else input_key(self.stage.kind, self.inputs)
        return f"{self.stage.folder}/{whole[:KEY_DIGITS]}"


def plan(stages: Sequence[Stage], present: Present) -> list[Step]:
    """One step per stage, in order."""
    steps: dict[str, Step] = {}
    for stage in stages:
        steps[stage.name] = _step(stage, steps, present.get(stage.folder, {}))
    return list(steps.values())


def _step(stage: Stage, earlier: Mapping[str, Step], here: Mapping[str, Manifest]) -> Step:
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
    if not here:
        return Step(stage, "missing", "not made yet", inputs)
    changes = min((list(_changes(old.inputs, inputs)) for old in here.values()), key=len)
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
