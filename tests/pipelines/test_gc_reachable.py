"""What `pipelines gc` may delete, over random histories of a run folder, against a slow look at all its manifests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from miner.artifacts.manifest import MANIFEST, FileRecord, Manifest, input_key
from pipelines.contents import Contents
from pipelines.garbage import Item, collect
from pipelines.plan import KEY_DIGITS, Step, plan
from pipelines.settings import Settings
from pipelines.stages import Data, declare
from tests.pipelines.builders import raw_settings

Manifests = dict[str, Manifest]
DATA = Data({"train": "a", "dev": "b", "test": "c"}, 84, 206, 210)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_is_reachable_goes(seed: int, folder: Path) -> None:
    """Random histories of settings, kills and lost artifacts, against a slow look at all manifests."""
    seeded = random.Random(seed)
    here: Manifests = {}
    for _ in range(seeded.randrange(1, 4)):
        settings = _settings(seeded, folder)
        _run(settings, here, seeded.choice([3, 9, 100, 100]), seeded)
    for prefix in seeded.sample(sorted(here), seeded.choice([0, 0, 1])):
        del here[prefix]
    steps = _plan(settings, here)
    states = {step.stage.name: step.state for step in steps}
    keep = seeded.choice([None, None, 0, 1, 2])
    doomed = collect(_contents(here), steps, keep)
    newest = max((step.stage.round for step in steps if step.state == "done"), default=0)

    wanted = {step.manifest.fingerprint for step in steps if step.manifest is not None}
    while True:
        more = {p for m in here.values() if m.fingerprint in wanted for p in m.inputs["parents"].values()} - wanted
        if not more:
            break
        wanted |= more
    dangling = _dangling(here)
    for item in doomed:
        work = item.where.split("/")[2].partition("-")[0]
        if here[item.where].fingerprint in wanted:
            assert keep is not None
            assert item.leave_record
            assert work in ("encode", "index")
            assert int(item.where.split("/")[1]) <= newest - keep
        _remove(here, item)
        assert _dangling(here) <= dangling, "children go before their parents"
    assert {step.stage.name: step.state for step in _plan(settings, here)} == states
    assert collect(_contents(here), _plan(settings, here), keep) == []
    if set(states.values()) == {"done"}:
        current = {prefix for prefix, m in here.items() if m.kind == "removed" or m.fingerprint in wanted}
        assert set(here) == current, "of a finished run nothing else is left"
    # Whatever is asked for next, it can be made from what is left.
    _run(_settings(seeded, folder), here, 100, seeded)
    _run(settings, here, 100, seeded)


def _settings(seeded: random.Random, folder: Path) -> Settings:
    raw = raw_settings(
        folder,
        run={"rounds": 2},
        loss={"alpha": seeded.choice([0.3, 0.4])},
        mine={"k": seeded.choice([7, 8])},
        encode={"batch_size": seeded.choice([16, 16, 8])},
    )
    return Settings.parse(raw, "test")


def _run(settings: Settings, here: Manifests, most: int, seeded: random.Random) -> None:
    """Commit up to `most` stages, as the loop would: each from parents whose files are there."""
    for _ in range(most):
        steps = {step.stage.name: step for step in _plan(settings, here)}
        step = next((s for s in steps.values() if s.state in ("missing", "stale")), None)
        if step is None:
            assert {s.state for s in steps.values()} == {"done"}
            return
        assert not any(steps[name].removed for _, name in step.stage.parents), "made from files that are gone"
        assert step.inputs is not None
        files = {"f": FileRecord(1, 1, input_key(step.stage.kind, step.inputs))}
        here[step.prefix] = Manifest(step.stage.kind, dict(step.inputs), files, {})


def _plan(settings: Settings, here: Manifests) -> list[Step]:
    present: dict[str, dict[str, Manifest]] = {}
    for prefix, manifest in here.items():
        folder, _, key = prefix.rpartition("/")
        present.setdefault(folder, {})[key] = manifest
    return plan(declare(settings, DATA), present)


def _contents(here: Manifests) -> Contents:
    files: dict[str, int | None] = {}
    for prefix, manifest in here.items():
        files |= dict.fromkeys((f"{prefix}/{name}" for name in (MANIFEST, *manifest.files)), 1)
    return Contents(files, dict(here))


def _dangling(here: Manifests) -> set[tuple[str, str]]:
    held = [m.inputs["fingerprint"] for m in here.values() if m.kind == "removed"]
    known = {m.fingerprint for m in here.values()} | set(held)
    return {(p, f) for p, m in here.items() for f in m.inputs.get("parents", {}).values() if f not in known}


def _remove(here: Manifests, item: Item) -> None:
    manifest = here.pop(item.where)
    if item.leave_record:
        body = {"kind": manifest.kind, "inputs": manifest.inputs, "meta": manifest.meta}
        records = {name: vars(record) for name, record in manifest.files.items()}
        about = {"fingerprint": manifest.fingerprint, "manifest": {**body, "files": records}}
        folder, _, key = item.where.rpartition("/")
        assert len(key) == KEY_DIGITS
        here[f"{folder}/removed-{key}"] = Manifest("removed", about, {}, {})
        Manifest.loads(here[f"{folder}/removed-{key}"].dumps(), "test")
