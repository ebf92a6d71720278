"""Mining beside training on a real local cluster: both at once, one that fails costs the other nothing, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import Settings
from tests.pipelines import trapped
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_loop import hashes, pipelines
from tests.pipelines.test_ray import finish, seen, start
from trainer.data import load

_DEADLINE = 120


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with `run.toml`, whose model has traps, and the run `inline`, of one process."""
    base = tmp_path_factory.mktemp("later")
    shutil.copy(trapped.__file__, base / "trapped_towers.py")
    raw = raw_settings(
        folder,
        run={"rounds": 3, "refresh": "async", "first_epochs": 1, "epochs": 3},
        watch={"trackers": []},
        executor={"kind": "ray", "workers": 2},
    )
    raw.pop("model")
    run_file = write_toml(base / "run.toml", raw)
    model = '[model]\nname = "custom"\nfactory = "trapped_towers:build"\ndim = 16\nsettings = { dim = 16 }\n'
    run_file.write_text(run_file.read_text() + model)
    with pytest.MonkeyPatch.context() as here:
        here.syspath_prepend(str(base))
        result = pipelines("run", run_file, "--run-dir", base / "inline", "--executor", "inline")
        assert result.exit_code == 0, result.output
    return base


@pytest.fixture
def half(base: Path, tmp_path: Path) -> Path:
    """A run folder in which all but round 2 is done, and encoding pictures waits for `held` to go away."""
    (base / "held").touch()
    root = Path(shutil.copytree(base / "inline", base / tmp_path.name))
    shutil.rmtree(root / "rounds" / "002")  # what follows is made from the same bytes again, and reused
    (root / "log.jsonl").unlink()
    return root


def test_training_is_done_while_pictures_are_encoded(base: Path, half: Path) -> None:
    held, run_file, root = base / "held", base / "run.toml", half
    encoded = seen(root, "002/encode-image/*/manifest.json")

    process = run(run_file, root)
    wait_for(process, root, seen(root, "002/fit/*/manifest.json"))
    wait_for(process, root, lambda: ("r2/fit", "epoch") in {(line["stage"], line["event"]) for line in log(root)})
    assert not encoded()
    held.unlink()
    finish(process, root)
    assert hashes(root) == hashes(base / "inline")
    events = [(line["stage"], line["event"]) for line in log(root)]
    assert events.index(("r2/encode-image", "start")) < events.index(("r2/fit", "done"))
    assert events.index(("r2/fit", "epoch")) < events.index(("r2/encode-image", "done"))


@pytest.mark.heavy
def test_an_interrupt_ends_both_damage_the_training_poison_the_refresh(base: Path, half: Path) -> None:
    held, fatal, run_file, root = base / "held", base / "fatal", base / "run.toml", half
    process = run(run_file, root)
    wait_for(process, root, lambda: {"r2/fit", "r2/encode-image"} <= {line["stage"] for line in log(root)})
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(_DEADLINE) == 1
    assert said(root).splitlines()[-1] == "Aborted!"
    assert "the same command goes on from there" in said(root)
    assert "Traceback" not in said(root)

    (table,) = (root / "rounds").glob("001/mine-t2i/*/negatives.parquet")
    whole = table.read_bytes()
    table.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    process = run(run_file, root)
    wait_for(process, root, lambda: "r2/fit failed: " in said(root))
    assert "The run ends once r2/encode-image, which is at work, is done." in said(root)
    held.unlink()
    assert process.wait(_DEADLINE) == 4, said(root)
    assert "negatives.parquet" in said(root).splitlines()[-1]
    assert seen(root, "002/encode-image/*/manifest.json")()
    assert not seen(root, "002/encode-text/*/manifest.json")()

    table.write_bytes(whole)
    shutil.rmtree(root / "rounds" / "002" / "encode-image")
    row = load(Settings.load(run_file).data, "train").images[[5]]
    fatal.write_text(repr(float(row[0, 0])))
    process = run(run_file, root)
    assert process.wait(_DEADLINE) == 3, said(root)
    fatal.unlink()
    assert "r2/encode-image: 1 shard was left out after 3 failures each" in said(root).splitlines()[-1]
    assert seen(root, "002/fit/*/manifest.json")()
    finish(run(run_file, root), root)
    assert hashes(root) == hashes(base / "inline")


def run(run_file: Path, root: Path) -> Any:
    return start(run_file, root, "--executor", "ray")


def said(root: Path) -> str:
    return (root.parent / f"{root.name}.log").read_text()


def log(root: Path) -> list[dict[str, Any]]:
    file = root / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(process: Any, root: Path, true: Callable[[], object]) -> None:
    end = time.monotonic() + _DEADLINE
    while not true():
        assert process.poll() is None, said(root)
        assert time.monotonic() < end, said(root)
        time.sleep(0.02)
