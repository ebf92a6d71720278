"""MLflow and W&B themselves, in a process apart; and that process when it fails, hangs, or is left alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipelines.trackers import About, Event, TrackerFailed, mlflow, wandb
from pipelines.trackers._apart import Apart
from pipelines.trackers._watch import Watch

RUN = "/runs/it's one"


def about(folder: Path) -> About:
    return About(RUN, folder, {"run.seed": "3", "mine.rules": "none"})


def events(first: int, last: int) -> list[Event]:
    """The epochs from `first` to before `last`, and a finished round."""
    made = [
        Event("run_start", RUN, 1.8e9),
        Event("round_done", RUN, 1.8e9, round=0, figures={"dev/rsum": 1}, again=True),
    ]
    made += [Event("epoch", RUN, 1.8e9 + step, step=step, figures={"loss": 10.0 - step}) for step in range(first, last)]
    return [*made, Event("round_done", RUN, 1.8e9, round=1, figures={"dev/rsum": 210.5})]


def tell(name: str, config: BaseModel, folder: Path, told: list[Event]) -> list[str]:
    """What is said while a tracker is told, in its process, through a watch."""
    said: list[str] = []
    watch = Watch(said.append)
    apart = Apart(name, config, about(folder))
    watch.add(name, apart.connect, 60.0, apart.abandon)
    for event in told:
        watch.tell(event)
    watch.close()
    return said


def test_mlflow_finds_its_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'quintain[mlflow]'")
    # Files instead of a server: MLflow wants to be asked twice.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = mlflow.Config(uri=(tmp_path / "mlruns").as_uri(), experiment="of a test")
    assert tell("mlflow", config, tmp_path, events(0, 2)) == []
    assert tell("mlflow", config, tmp_path, [*events(2, 4)[:-1], Event("run_done", RUN, 1.8e9)]) == []
    (losses,) = (tmp_path / "mlruns").glob("*/*/metrics/epoch/loss")
    rows = [line.split() for line in losses.read_text().splitlines()]
    assert [(int(step), float(value)) for _, value, step, *_ in rows] == [(0, 10), (1, 9), (2, 8), (3, 7)]
    (rsums,) = (tmp_path / "mlruns").glob("*/*/metrics/round/dev/rsum")
    assert [line.split()[1:3] for line in rsums.read_text().splitlines()] == [["210.5", "1"]]
    assert (losses.parents[2] / "tags/mine.rules").read_text() == "none"
    assert "status: 3" in (losses.parents[2] / "meta.yaml").read_text(), "finished"


def test_mlflow_without_a_server_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (said,) = tell("mlflow", mlflow.Config(), tmp_path, events(0, 1))
    assert said.startswith("mlflow: no server is named")


def test_wandb_keeps_figures_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'quintain[wandb]'")
    config = wandb.Config(mode="offline", project="of-a-test")
    assert tell("wandb", config, tmp_path, [*events(0, 3), Event("run_done", RUN, 1.8e9)]) == []
    (written,) = (tmp_path / "watch/wandb").glob("offline-run-*/*.wandb")
    found = _logged(written)
    assert [(row["step/epoch"], row["epoch/loss"]) for row in found if "epoch/loss" in row] == [(0, 10), (1, 9), (2, 8)]
    assert [row["round/dev/rsum"] for row in found if "round/dev/rsum" in row] == [210.5]


def _logged(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's file: seven bytes, then per record its checksum (4), length (2), kind (1) and bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, rows = path.read_bytes(), 7, []
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        record = Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


# A tracker of our own for the process apart: what it is told to do, it does.
MISBEHAVES = """
import os, signal, sys, time
from pydantic import BaseModel
from pipelines.trackers import TrackerFailed
APART, CLOSING = True, float(os.environ.get("MISBEHAVES_CLOSING", "60"))
class Config(BaseModel):
    where: str = ""
def connect(config, about):
    print("a library prints", flush=True)
    sys.stderr.write("what it likes")
    while os.path.exists(config.where + ".connect"):
        time.sleep(60)
    return Tracker(config)
class Tracker:
    def __init__(self, config):
        self.where = config.where
    def __call__(self, event):
        if event.message == "raise":
            raise RuntimeError("secret text")
        if event.message == "fail":
            raise TrackerFailed("a sentence")
        if event.message == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        open(self.where, "a").write(event.message + chr(10))
        if event.message == "hang":
            while True:
                time.sleep(60)
    def close(self):
        if os.path.exists(self.where + ".hang"):
            while True:
                time.sleep(60)
        open(self.where, "a").write("closed" + chr(10))
"""


class _Config(BaseModel):
    where: str


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Config:
    """A module beside the trackers of the package, for this process and for children."""
    import pipelines.trackers

    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "misbehaves.py").write_text(MISBEHAVES)
    monkeypatch.setattr(pipelines.trackers, "__path__", [*pipelines.trackers.__path__, str(folder)])
    site = f"import pipelines.trackers; pipelines.trackers.__path__.append({str(folder)!r})"
    (folder / "usercustomize.py").write_text(site)
    (folder / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", ""), *sys.path]))
    monkeypatch.delitem(sys.modules, "pipelines.trackers.misbehaves", raising=False)
    return _Config(where=str(tmp_path / "told"))


def said_of(config: _Config, tmp_path: Path, *messages: str) -> list[str]:
    return tell("misbehaves", config, tmp_path, [Event("epoch", RUN, 1.8e9, message=each) for each in messages])


def test_what_goes_wrong_in_the_process_apart_is_said(misbehaving: _Config, tmp_path: Path) -> None:
    said = said_of(misbehaving, tmp_path, "one", "raise", "two", "fail", "three")
    assert said == ["misbehaves: failed with RuntimeError; the run goes on"]
    assert said_of(misbehaving, tmp_path, "fail") == ["misbehaves: a sentence; the run goes on"]
    assert Path(misbehaving.where).read_text().split() == ["one", "two", "three", "closed", "closed"]


def test_a_tracker_that_cannot_connect_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    apart = Apart("mlflow", mlflow.Config(), about(tmp_path))
    with pytest.raises(TrackerFailed, match="no server is named"):
        apart.connect()
    assert apart.child is not None
    assert apart.child.wait(10) == -signal.SIGKILL


def test_a_process_that_dies_is_let_go(misbehaving: _Config, tmp_path: Path) -> None:
    said = said_of(misbehaving, tmp_path, "one", "die", "two", "three", "four")
    assert said[0] == "misbehaves: its process ended with exit code -9; the run goes on"
    assert "told nothing more" in said[1]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time to close."""
    monkeypatch.setenv("MISBEHAVES_CLOSING", "0.5")


@pytest.mark.usefixtures("hurried")
def test_a_process_that_hangs_is_ended(misbehaving: _Config, tmp_path: Path) -> None:
    Path(misbehaving.where + ".hang").touch()
    apart = Apart("misbehaves", misbehaving, about(tmp_path)).connect()
    apart(Event("epoch", RUN, 1.8e9, message="one"))
    with pytest.raises(TrackerFailed, match="ended"):
        apart.close()
    assert apart.child is not None
    assert not alive(apart.child.pid)


@pytest.mark.parametrize("where", ["at work", "connecting"])
def test_a_process_that_hangs_is_ended_with_the_watch(misbehaving: _Config, tmp_path: Path, where: str) -> None:
    said: list[str] = []
    if where == "connecting":
        Path(misbehaving.where + ".connect").touch()
    apart = Apart("misbehaves", misbehaving, about(tmp_path))
    watch = Watch(said.append)
    watch.add("misbehaves", apart.connect, 2.0, apart.abandon)
    watch.tell(Event("epoch", RUN, 1.8e9, message="hang"))
    watch.tell(Event("epoch", RUN, 1.8e9, message="two"))
    watch.close()
    assert said == ["misbehaves: not finished 2 s after the run; left behind"]
    assert apart.child is not None
    apart.child.wait(10)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("message", ["hang", "one"])
def test_a_process_whose_run_was_killed_ends_by_itself(misbehaving: _Config, tmp_path: Path, message: str) -> None:
    """The parent is another process, killed while the child hangs at work, or will in its close."""
    import subprocess

    Path(misbehaving.where + ".hang").touch()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pipelines.trackers import About, Event, misbehaves; from pipelines.trackers._apart import Apart\n"
        "apart = Apart('misbehaves', misbehaves.Config(where=sys.argv[1]), About('r', None, {})).connect()\n"
        "print(apart.child.pid, flush=True); apart(Event('epoch', 'r', 0, message=sys.argv[2])); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, misbehaving.where, message]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 60
    while not Path(misbehaving.where).exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(child)
