"""`best/`: a copy of the best round's checkpoint that commands take, whole or not there, wherever it is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest
from click.testing import CliRunner

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import open_artifact
from miner.artifacts.store import LocalStore, Store
from pipelines import loop
from pipelines.best import BEST, export_best
from pipelines.cli import main
from pipelines.plan import Step
from pipelines.settings import Settings
from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import raw_settings, write_toml
from trainer import cli as trainer
from trainer.checkpoint import CHECKPOINT, Checkpoint


def pipelines(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def steps_in(store: Store) -> list[Step]:
    data = loop.saved_data(store)
    assert data is not None
    return loop.steps_of(loop.saved_settings(store), data, store)


def with_rsums(steps: Sequence[Step], *rsums: float) -> list[Step]:
    """The steps, had the rounds been evaluated to these."""
    found = []
    for step in steps:
        if step.stage.work == "evaluate" and step.manifest is not None:
            metrics = {"metrics": {"dev": {"rsum": rsums[step.stage.round]}}}
            step = replace(step, manifest=replace(step.manifest, meta=metrics))
        found.append(step)
    return found


def weights(root: Path, round: int) -> bytes:
    return next((root / f"rounds/{round:03d}/fit").glob("*/weights.safetensors")).read_bytes()


def test_the_best_round_is_marked_and_exported(finished_run: Path, folder: Path) -> None:
    root = finished_run / "run"
    rounds = json.loads(pipelines("status", root, "--json"))["rounds"]
    rsums = [r["metrics"]["dev"]["rsum"] for r in rounds]
    best = rsums.index(max(rsums))
    assert [r["best"] for r in rounds] == [number == best for number in range(3)]
    assert f"\nbest {best} " in pipelines("status", root)
    assert f">{best} (best)</th>" in (root / "report.html").read_text()
    assert (root / BEST / "weights.safetensors").read_bytes() == weights(root, best)
    assert Checkpoint.load(root / BEST).fingerprint

    evaluated = CliRunner().invoke(
        trainer.main,
        ["evaluate", "--data", str(folder), "--split", "dev", "--checkpoint", str(root / BEST), "--json"],
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.output)["metrics"]["rsum"] == pytest.approx(max(rsums))


def test_it_is_written_once_and_replaced_by_another_round(finished_run: Path, copy_of: Any) -> None:
    root = copy_of(finished_run)
    store = LocalStore(root)
    steps = steps_in(store)
    for rsums, best in (((1, 2, 3), 2), ((1, 2, 2), 1), ((3, 2, 1), 0)):
        export_best(with_rsums(steps, *rsums), store)
        files = {path: path.stat().st_mtime_ns for path in (root / BEST).iterdir()}
        export_best(with_rsums(steps, *rsums), store)
        assert {path: path.stat().st_mtime_ns for path in (root / BEST).iterdir()} == files
        assert (root / BEST / "weights.safetensors").read_bytes() == weights(root, best)
        assert open_artifact(root / BEST, CHECKPOINT).manifest.inputs["round"] == best
    shutil.rmtree(root / BEST)
    run_file = finished_run / "run.toml"
    assert "0 to run" in pipelines("run", run_file, "--run-dir", root)
    assert (root / BEST / "manifest.json").is_file()


class _Dies(Exception):
    pass


def _dying(root: Path, at: int, after: bool) -> LocalStore:
    """A folder whose operation number `at` is its last. A folder is removed file by file, its manifest at the end."""
    count = 0

    def around(name: str) -> Callable[..., Any]:
        def method(self: LocalStore, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and not after:
                raise _Dies
            made = getattr(LocalStore, name)(self, *arguments)
            if count == at:
                raise _Dies
            return made

        return method

    remove = around("remove")

    def in_pieces(self: LocalStore, name: str) -> None:
        for path in sorted((self.root / name).glob("*"), reverse=True):
            remove(self, f"{name}/{path.name}")
        remove(self, name)

    names = ("create", "put", "read", "scratch", "write")
    methods = {name: around(name) for name in names} | {"remove": in_pieces}
    kind: type[LocalStore] = type("Dying", (LocalStore,), methods)
    return kind(root)


def _deaths(root: Path, steps: list[Step]) -> Iterator[str]:
    """Put the copy in place of an older one and die at one operation after the other, until one goes through."""
    older, newer = with_rsums(steps, 3, 2, 1), with_rsums(steps, 1, 2, 3)
    for at in range(1, 1000):
        for after in (False, True):
            export_best(older, LocalStore(root))
            try:
                export_best(newer, _dying(root, at, after))
            except _Dies:
                yield f"{at} {after}"
            else:
                return


def test_a_kill_anywhere_leaves_the_old_the_new_or_nothing(finished_run: Path, copy_of: Any) -> None:
    root = copy_of(finished_run)
    steps = steps_in(LocalStore(root))
    absent = count = 0
    for death in _deaths(root, steps):
        count += 1
        if (root / BEST / "manifest.json").is_file():
            artifact = open_artifact(root / BEST, CHECKPOINT)
            whole = artifact.manifest.inputs["round"]
            # The manifest goes first, so that what it lists is there as long as it is.
            assert (root / BEST / "weights.safetensors").read_bytes() == weights(root, whole), death
            artifact.verify()
        else:
            absent += 1
            (root / BEST).mkdir(exist_ok=True)
            (root / BEST / ".tmp-left-by-a-kill").touch()
            assert "damaged" not in pipelines("verify", root, "--stage", BEST, code=0 if _any(root) else 3), death
        export_best(with_rsums(steps, 1, 2, 3), LocalStore(root))
        assert (root / BEST / "weights.safetensors").read_bytes() == weights(root, 2), death
        assert not list((root / BEST).glob(".tmp-*")), death
    assert count > 15
    assert absent > 10


def _any(root: Path) -> bool:
    return any((root / BEST).glob("*"))


def test_damage_is_found_said_and_mended(finished_run: Path, copy_of: Any, folder: Path) -> None:
    root = copy_of(finished_run)
    path = root / BEST / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert f"damaged: {BEST}/weights.safetensors" in pipelines("verify", root, code=4)
    with pytest.raises(DamagedArtifact):
        Checkpoint.load(root / BEST)
    pipelines("run", finished_run / "run.toml", "--run-dir", root)
    assert "all as committed" in pipelines("verify", root)
    path.unlink()
    pipelines("run", finished_run / "run.toml", "--run-dir", root)
    assert "all as committed" in pipelines("verify", root)
    (root / BEST / "manifest.json").write_text("{}")
    pipelines("run", finished_run / "run.toml", "--run-dir", root)
    assert "all as committed" in pipelines("verify", root)


def test_a_damaged_checkpoint_is_not_copied(finished_run: Path, copy_of: Any) -> None:
    root = copy_of(finished_run)
    steps = steps_in(LocalStore(root))
    for path in root.glob("rounds/*/fit/*/weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    shutil.rmtree(root / BEST)
    with pytest.raises(DamagedArtifact):
        export_best(steps, LocalStore(root))
    assert not (root / BEST / "manifest.json").exists()


def test_gc_keeps_what_it_was_copied_from(run_twice: Path, folder: Path, copy_of: Any, tmp_path: Path) -> None:
    """A checkpoint of older settings goes with the first gc, unless it is the one that `best` is a copy of."""
    root = copy_of(run_twice)
    store = LocalStore(root)
    older = [path.parent.name for path in sorted(root.glob("rounds/002/fit/*/manifest.json"))]
    current = next(step.prefix for step in steps_in(store) if step.stage.name == "r2/fit").rpartition("/")[2]
    older.remove(current)
    assert len(older) == 1
    other = write_toml(tmp_path / "older.toml", raw_settings(folder))
    settings = Settings.load(other)
    older_steps = loop.steps_of(settings, loop.describe(settings), store)
    export_best(with_rsums(older_steps, 1, 2, 3), store)
    pipelines("gc", root, "--delete")
    assert (root / f"rounds/002/fit/{older[0]}/manifest.json").is_file()
    assert "all as committed" in pipelines("verify", root)
    export_best(with_rsums(steps_in(store), 1, 2, 3), store)
    pipelines("gc", root, "--delete")
    assert not (root / f"rounds/002/fit/{older[0]}").exists()
    assert "all as committed" in pipelines("verify", root)


def test_in_a_bucket(moto: int, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
    from pipelines.places import place
    from tests.pipelines import buckets

    buckets.environment(monkeypatch, moto, tmp_path / "cache")
    where, root = f"s3://{buckets.new_bucket(moto)}/runs/one", finished_run / "run"
    store = place(where)
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != "log.jsonl"):
        if BEST not in path.relative_to(root).parts:
            store.write(str(path.relative_to(root)), path.read_bytes())
    steps = steps_in(store)
    for rsums, best in (((1, 2, 3), 2), ((3, 2, 1), 0)):
        export_best(with_rsums(steps, *rsums), store)
        assert store.read(f"{BEST}/weights.safetensors") == weights(root, best)
    assert "all as committed" in pipelines("verify", where, "--stage", BEST)
    assert sorted(store.names(BEST)) == sorted(path.name for path in (root / BEST).iterdir())


def test_another_writer_is_noticed_before_anything_is_replaced(finished_run: Path, copy_of: Any) -> None:
    root = copy_of(finished_run)
    steps = steps_in(LocalStore(root))
    export_best(with_rsums(steps, 1, 2, 3), LocalStore(root))

    def taken() -> Never:
        raise _Dies

    with pytest.raises(_Dies):
        export_best(with_rsums(steps, 3, 2, 1), LocalStore(root), taken)
    assert (root / BEST / "weights.safetensors").read_bytes() == weights(root, 2)
