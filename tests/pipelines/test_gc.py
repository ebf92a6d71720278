"""`pipelines gc` removes what nothing needs, and nothing else, wherever it is stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miner.artifacts.lease import hold_lease
from miner.artifacts.lock import hold
from miner.artifacts.manifest import MANIFEST, FileRecord, Manifest
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore
from pipelines import loop, stages
from pipelines.cli import main
from tests.miner.artifacts import conftest as servers
from tests.pipelines.builders import raw_settings, write_toml

Copy = Callable[[Path], Path]
environment, moto, s3 = servers.environment, servers.moto, servers.s3


def pipelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def files(root: Path) -> dict[str, str]:
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in ("settings.json", "log.jsonl"))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def items(root: object, *options: object) -> list[dict[str, Any]]:
    result = pipelines("gc", root, "--json", *options)
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout)["items"])


def accepted(base: Path, root: Path) -> None:
    """`verify` finds no damage, and `run` has nothing to do and changes no artifact."""
    result = pipelines("verify", root)
    assert result.exit_code == 0, result.output
    result = pipelines("run", base / "run.toml", "--run-dir", root)
    assert result.exit_code == 0, result.output
    assert "0 to run" in result.output


def test_nothing_of_a_finished_run_goes(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    before = files(root)
    assert items(root) == items(root, "--delete") == items(root, "--keep-rounds", 2) == []
    assert files(root) == before
    assert "nothing can go" in pipelines("gc", root).output


def test_older_keys_and_leftovers_go(run_twice: Path, finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(run_twice)
    artifact = next((root / "rounds/001/mine-i2t").iterdir())
    left = [artifact / "anchors-00000.npz.done", artifact / ".tmp-0123456789abcdef", root / ".tmp-0123456789abcdef"]
    left += [artifact.parent / "0123456789abcdef" / "anchors-00000.npz", artifact / "candidates" / "manifest.json"]
    foreign = [root / "notes.txt", root / "rounds/notes.txt"]
    for path in (*left, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    left[-1].write_bytes(Manifest("candidates", {}, {}, {}).dumps())

    before = files(root)
    shown = items(root)
    assert files(root) == before, "without --delete nothing happens"
    older = {item["where"] for item in shown if "older inputs" in item["why"]}
    assert {"/".join(where.split("/")[1:3]) for where in older} == {
        "001/fit", "001/evaluate", "002/encode-image", "002/encode-text", "002/index-image", "002/index-text",
        "002/mine-i2t", "002/mine-t2i", "002/fit", "002/evaluate", "002/report",
    }  # fmt: skip
    result = pipelines("gc", root, "--delete")
    assert result.exit_code == 0, result.output
    gone = set(before) - set(files(root))
    assert sum(item["bytes"] for item in shown) == sum((run_twice / "run" / n).stat().st_size for n in gone - {
        str(p.relative_to(root)) for p in left
    }) + sum(len(p.name) for p in left[:-1]) + len(Manifest("candidates", {}, {}, {}).dumps())  # fmt: skip
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in foreign)
    assert set(files(root)) < set(before)
    accepted(run_twice, root)
    assert items(root) == []


def test_embeddings_of_older_rounds_go_and_come_back(finished_run: Path, copy_of: Copy, folder: Path) -> None:
    root = copy_of(finished_run)
    before = files(root)
    assert {i["where"].split("/")[2] for i in items(root, "--keep-rounds", 1, "--keep-embeddings")} == {
        "index-image",
        "index-text",
    }
    gone = {i["where"].rpartition("/")[0] for i in items(root, "--keep-rounds", 1, "--delete")}
    assert gone == {f"rounds/001/{work}-{side}" for work in ("encode", "index") for side in ("image", "text")}
    accepted(finished_run, root)
    assert pipelines("status", root).exit_code == 0
    left = files(root)
    assert all(left[name] == hash for name, hash in before.items() if name in left)
    assert {"/".join(name.split("/")[:3]) for name in set(before) - set(left)} == gone

    # What needs them again gets them again, the same bytes, and gc then forgets that they were gone.
    other = write_toml(root.parent / "other.toml", raw_settings(folder, mine={"k": 8}))
    shown = pipelines("plan", other, "--run-dir", root).output
    assert "removed by gc; r1/mine" in shown or "removed by gc; r1/index" in shown
    assert pipelines("run", other, "--run-dir", root).exit_code == 0
    again = files(root)
    assert all(again[name] == hash for name, hash in before.items() if name != "report.html")
    assert pipelines("verify", root).exit_code == 0
    assert items(root, "--delete")
    assert not list(root.rglob("removed-*"))
    assert pipelines("verify", root).exit_code == 0
    result = pipelines("run", other, "--run-dir", root)
    assert "0 to run" in result.output


def test_what_is_still_to_do_keeps_everything(run_twice: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_of(run_twice)
    store = LocalStore(root)
    settings, data = loop.saved_settings(store), loop.saved_data(store)
    assert data is not None
    current = {step.stage.name: step.prefix for step in loop.steps_of(settings, data, store)}
    draft = root / current["r2/mine-i2t"]
    (draft / MANIFEST).unlink()  # killed there: the other files are parts
    parts = {name for name in files(root) if name.startswith(str(draft.relative_to(root)))}
    assert items(root, "--delete", "--keep-rounds", 1)
    assert parts <= set(files(root))
    assert not list(root.glob("rounds/002/*/removed-*")), "the stage that is to run is made from these"
    assert pipelines("run", run_twice / "run.toml", "--run-dir", root).exit_code == 0
    assert pipelines("verify", root).exit_code == 0

    # On a machine with another torch everything is stale, and nothing may go.
    monkeypatch.setattr(stages, "_versions", lambda libraries: {"torch": "99"})
    before = files(root)
    for options in ([], ["--keep-rounds", 0]):
        assert items(root, "--delete", *options) == []
    assert files(root) == before


def test_it_is_refused_where_it_cannot_work(finished_run: Path, copy_of: Copy, tmp_path: Path) -> None:
    root = copy_of(finished_run)
    for options in ([], ["--delete"]):
        with hold(root):
            result = pipelines("gc", root, *options)
        assert (result.exit_code, "another command is writing" in result.output) == (5, True)
    assert pipelines("gc", tmp_path / "nothing").exit_code == 3
    assert not (tmp_path / "nothing").exists()
    assert pipelines("gc", root, "--keep-embeddings").exit_code == 2
    path = next(root.glob("rounds/001/fit/*/manifest.json"))
    path.write_bytes(path.read_bytes()[:-5])
    before = files(root)
    assert pipelines("gc", root, "--delete").exit_code == 4
    assert files(root) == before


class _Killed(BaseException):
    pass


def test_it_may_be_stopped_anywhere(run_twice: Path, copy_of: Copy, tmp_path: Path) -> None:
    """At every change of the disk: whatever comes after it does not happen."""
    options = ["--keep-rounds", 1, "--delete"]
    whole = copy_of(run_twice)
    items(whole, *options)
    end = files(whole)
    total = _changes(lambda: items(_fresh(run_twice, tmp_path, "count"), *options), stop=None)
    assert total > 60
    for stop in sorted({1, 2, 3, total - 1, *random.Random(7).sample(range(total), 9)}):
        root = _fresh(run_twice, tmp_path, f"at-{stop}")
        _changes(partial(pipelines, "gc", root, *options), stop)
        accepted(run_twice, root)
        items(root, *options)
        assert files(root) == end, stop
        result = pipelines("verify", root)
        assert "note" not in result.output, result.output


def _fresh(base: Path, parent: Path, name: str) -> Path:
    import shutil

    return Path(shutil.copytree(base / "run", parent / name))


def _changes(call: Callable[[], object], stop: int | None) -> int:
    """Calls, and counts changes of the disk; from number `stop` on none happens."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "rmdir", "link", "replace"):
            real = getattr(os, name)

            def change(*given: Any, real: Any = real, **also: Any) -> Any:
                nonlocal count
                count += 1
                if stop is not None and count > stop:
                    raise _Killed
                return real(*given, **also)

            patch.setattr(os, name, change)
        with contextlib.suppress(_Killed):
            call()
    return count


@pytest.mark.parametrize("seed", [1, 2])
def test_it_may_be_killed(seed: int, run_twice: Path, copy_of: Copy) -> None:
    root = copy_of(run_twice)
    at = random.Random(seed).randrange(10, 50)
    code = (
        "import os, signal, sys\n"
        "from pipelines.cli import main\n"
        "real, count = os.unlink, 0\n"
        "def unlink(*given, **also):\n"
        "    global count\n"
        "    count += 1\n"
        f"    if count == {at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*given, **also)\n"
        "os.unlink = unlink\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "gc", str(root), "--delete", "--keep-rounds", "1"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    accepted(run_twice, root)
    assert items(root, "--delete", "--keep-rounds", 1)
    accepted(run_twice, root)
    assert items(root, "--keep-rounds", 1) == []


def test_in_an_object_store(run_twice: Path, request: pytest.FixtureRequest) -> None:
    store: ObjectStore = request.getfixturevalue("s3")()
    root = run_twice / "run"
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        store.write(str(path.relative_to(root)), path.read_bytes())
    with hold_lease(store, holder="nightly"):
        for options in ([], ["--delete"]):
            result = pipelines("gc", store.url, *options)
            assert (result.exit_code, "nightly" in result.output) == (5, True)
    assert pipelines("verify", store.url).exit_code == 0
    shown = items(store.url, "--keep-rounds", 1)
    assert [i["where"] for i in items(store.url, "--keep-rounds", 1, "--delete")] == [i["where"] for i in shown]
    assert sum(item["bytes"] for item in shown) > 100_000
    assert items(store.url, "--keep-rounds", 1) == []
    assert pipelines("verify", store.url).exit_code == 0
    settings, data = loop.saved_settings(store), loop.saved_data(store)
    assert data is not None
    assert {step.state for step in loop.steps_of(settings, data, store)} == {"done"}


def test_the_record_is_what_is_written(tmp_path: Path) -> None:
    from pipelines.removed import record_at, recorded, write_record

    store = LocalStore(tmp_path)
    prefix = "rounds/001/encode-image/0123456789abcdef"
    for meta in ({"a": 1.5}, {"a": 1.5}, {"a": 2}):
        whole = Manifest("embeddings", {"parents": {"x": "y"}}, {"f": FileRecord(3, 2, "c")}, meta)
        write_record(store, prefix, whole)
        data = store.read(f"{record_at(prefix)}/{MANIFEST}")
        assert recorded(Manifest.loads(data, "test")) == whole
