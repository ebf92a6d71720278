"""The same loop on real local Ray clusters: the same bytes whatever the workers, and whenever the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from miner.artifacts.errors import BadInput
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_loop import hashes
from trainer.checkpoint import Checkpoint

_DEADLINE = 240


def start(run_file: Path, root: Path, *options: str) -> subprocess.Popen[bytes]:
    """`pipelines run` in its own session, from the folder above `root`, with a home of its own."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", root.name, *options]
    log = open(root.parent / f"{root.name}.log", "ab")  # noqa: SIM115 - the process holds it
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=root.parent)


def finish(process: subprocess.Popen[bytes], root: Path) -> None:
    try:
        code = process.wait(_DEADLINE)
    finally:
        kill(process)
    assert code == 0, (root.parent / f"{root.name}.log").read_text()[-4000:]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL whatever is left of the driver's session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    # One mining round, several shards a stage, several epochs a fit: something to be in the middle of.
    raw = raw_settings(
        folder, run={"rounds": 1, "first_epochs": 3, "epochs": 3}, executor={"kind": "ray", "workers": 2}
    )
    return write_toml(tmp_path_factory.mktemp("ray") / "run.toml", raw)


@pytest.fixture(scope="module")
def undisturbed(run_file: Path) -> dict[str, str]:
    root = run_file.parent / "inline"
    finish(start(run_file, root, "--executor", "inline"), root)
    return hashes(root)


@pytest.mark.parametrize("workers", [3, *(pytest.param(few, marks=pytest.mark.heavy) for few in (1, 2))])
def test_any_number_of_workers_gives_the_bytes_of_one_process(
    run_file: Path, undisturbed: dict[str, str], workers: int
) -> None:
    root = run_file.parent / f"workers-{workers}"
    finish(start(run_file, root, "--workers", str(workers)), root)
    assert hashes(root) == undisturbed


def test_processes_of_a_fit_train_what_one_trains(folder: Path, tmp_path: Path) -> None:
    for name, processes in (("inline", 1), ("ray", 2)):
        raw = raw_settings(
            folder,
            run={"rounds": 0},
            fit={"processes": processes},
            executor={"kind": name, "workers": 2},
        )
        run_file = write_toml(tmp_path / f"{name}.toml", raw)
        finish(start(run_file, tmp_path / name), tmp_path / name)
    (one,), (several,) = (list(tmp_path.glob(f"{name}/rounds/000/fit/*")) for name in ("inline", "ray"))
    first, second = Checkpoint.load(one), Checkpoint.load(several)
    for name, values in first.state.items():
        torch.testing.assert_close(second.state[name], values, rtol=1e-3, atol=1e-5)
    assert first.updates == second.updates
    assert first.fingerprint != second.fingerprint, "not trained by two processes"


def test_processes_for_which_there_is_no_room_or_no_ray_are_refused(folder: Path, tmp_path: Path) -> None:
    raw = raw_settings(folder, fit={"processes": 3}, executor={"kind": "ray", "workers": 2})
    run_file = write_toml(tmp_path / "run.toml", raw)
    refused = {
        "ray": "r0/fit: [fit] processes = 3, of which each takes 1 CPU, but the nodes have room for 2; ask for less",
        "inline": "fit.processes = 3 needs Ray, and the executor 'inline' is this process alone; take",
    }
    for executor, said in refused.items():
        process = start(run_file, tmp_path / "run", "--executor", executor)
        assert process.wait(_DEADLINE) == BadInput.exit_code
        log = (tmp_path / "run.log").read_text()
        assert said in log
        assert "Traceback" not in log


def test_an_approximate_index_gives_the_bytes_of_one_process(folder: Path, tmp_path: Path) -> None:
    raw = raw_settings(
        folder,
        run={"rounds": 1, "first_epochs": 1, "epochs": 1},
        mine={"recall": 0.8, "recall_sample": 20, "rules": ["relative-margin:margin=0.2"]},
        executor={"kind": "ray", "workers": 2},
    )
    run_file = write_toml(tmp_path / "run.toml", {**raw, "index": {"factory": "PCAR8,IVF6,SQ8"}})
    for name in ("inline", "ray"):
        finish(start(run_file, tmp_path / name, "--executor", name), tmp_path / name)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "inline")
    assert list(tmp_path.glob("ray/rounds/001/tune-i2t/*/tuned.json"))


def seen(root: Path, pattern: str) -> Callable[[], bool]:
    """Whether a file that matches is there."""
    return lambda: next(iter((root / "rounds").glob(pattern)), None) is not None


# What is on disk in the middle of each stage, and not before it.
MIDDLE = {
    "fit": "000/fit/*/epochs/epoch-0001.json",
    "encode": "001/encode-text/*/part-00001.npy.done",
    "index": "001/encode-text/*/manifest.json",
    "mine": "001/mine-t2i/*/anchors-00001.npz.done",
    "refit": "001/fit/*/epochs/epoch-0003.json",
    "evaluate": "001/fit/*/manifest.json",
}


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("stage", MIDDLE)
def test_a_killed_driver_then_the_same_command(
    request: pytest.FixtureRequest, run_file: Path, undisturbed: dict[str, str], executor: str, stage: str
) -> None:
    _kill_in_the_middle(request, run_file, undisturbed, executor, [stage])


def test_a_killed_ray_driver_then_the_same_command(
    request: pytest.FixtureRequest, run_file: Path, undisturbed: dict[str, str]
) -> None:
    _kill_in_the_middle(request, run_file, undisturbed, "ray", ["encode", "mine", "refit"])


def _kill_in_the_middle(
    request: pytest.FixtureRequest, run_file: Path, undisturbed: dict[str, str], executor: str, stages: list[str]
) -> None:
    root = run_file.parent / f"killed-{executor}-{'-'.join(stages)}"
    killed: list[subprocess.Popen[bytes]] = []
    request.addfinalizer(lambda: [kill(process) for process in killed])
    for stage in stages:
        process = start(run_file, root, "--executor", executor)
        killed.append(process)
        _wait(process, seen(root, MIDDLE[stage]))
        # The driver alone: what it had started may still be at work while the next one is.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not seen(root, "001/evaluate/*/manifest.json")(), "killed too late to mean anything"
    finish(start(run_file, root, "--executor", executor), root)
    assert hashes(root) == undisturbed


def _wait(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    for _ in _every(0.002):
        if reached():
            return
        assert process.poll() is None, f"ended with {process.returncode} before the middle was seen"


def _every(seconds: float) -> Iterator[None]:
    end = time.monotonic() + _DEADLINE
    while time.monotonic() < end:
        yield
        time.sleep(seconds)
    raise AssertionError(f"nothing happened within {_DEADLINE} s")
