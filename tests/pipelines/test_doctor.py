"""`pipelines doctor` says what is wrong, what to do, no secret, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miner import memory
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore
from pipelines import machine, mounts, storage
from pipelines.cli import main
from pipelines.machine import Check
from tests.miner.artifacts import conftest as servers
from tests.miner.artifacts.between import Between

environment, moto, s3 = servers.environment, servers.moto, servers.s3
Usage = namedtuple("Usage", "total used free")


def pipelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of its own for torch and faiss: the answers of a machine where all is well."""
    answers = {machine._TORCH: {"cuda": None, "gpus": []}, machine._FAISS: {"version": "1.15.1", "gpus": 0}}
    monkeypatch.setattr(machine, "_child", lambda code: answers[code])
    monkeypatch.setattr(machine, "_NVIDIA", Path("/nowhere"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")


def checks(place: object, code: int | None = None) -> dict[str, Check]:
    result = pipelines("doctor", place, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (3 if found["state"] == "problem" else 0)
    assert code is None or result.exit_code == code
    listed = [Check(**each) for each in found["checks"]]
    assert len({check.name for check in listed}) == len(listed)
    assert all(bool(check.do) == (check.state != "ok") for check in listed), "what to do, if and only if it is not ok"
    return {check.name: check for check in listed}


def test_this_machine_with_the_real_torch_and_faiss(tmp_path: Path) -> None:
    result = pipelines("doctor", tmp_path)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert any("torch" in line and "GPUs:" in line for line in lines)
    assert any("faiss" in line and "GPUs seen:" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = checks(tmp_path / "a" / "b", 0)
    assert str(tmp_path) in found["write"].found
    assert not list(tmp_path.iterdir())
    assert {"fsync", "lock", "replace", "one writer wins", "conditional create", "disk"} <= set(found)


@pytest.mark.usefixtures("quick")
def test_a_place_that_cannot_hold_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert checks(tmp_path / "file", 3)["place"].state == "problem"

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        found = checks(tmp_path, 3)
        assert found["conditional create"].state == "problem"
        assert "hard links" in found["conditional create"].found

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "No space left" in checks(tmp_path, 3)["write"].found
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_store_that_breaks_its_promises(tmp_path: Path) -> None:
    class Careless(LocalStore):
        """Renames where it should link: every writer wins."""

        def create(self, name: str, data: bytes) -> bool:
            self.write(name, data)
            return True

    class Forgetful(LocalStore):
        def read(self, name: str) -> bytes:
            return super().read(name)[:-1]

    careless = {name: _state(test, Careless(tmp_path)) for name, test in _TESTS.items()}
    assert careless == {"write": "ok", "race": "problem", "conditional": "problem", "replace": "ok"}
    forgetful = {name: _state(test, Forgetful(tmp_path)) for name, test in _TESTS.items()}
    assert forgetful["write"] == forgetful["replace"] == "problem"


_TESTS: dict[str, Callable[[Any, str], str]] = {
    "write": storage._write,
    "race": storage._race,
    "conditional": lambda store, _: storage._conditional(store),
    "replace": storage._replace,
}


def _state(test: Callable[[Any, str], str], store: LocalStore) -> str:
    try:
        test(store, "probe")
    except ValueError:  # BadInput
        return "problem"
    return "ok"


@pytest.mark.usefixtures("quick")
def test_an_object_store(request: pytest.FixtureRequest, moto: int) -> None:
    make = request.getfixturevalue("s3")
    store: ObjectStore = make()
    found = checks(store.url, 0)
    assert {"write", "replace", "one writer wins", "conditional create"} <= set(found)
    assert "disk" not in found
    with Between(moto, dropped=frozenset({"if-none-match", "If-None-Match"})) as between:
        make(store.bucket, port=between.port)
        found = checks(store.url, 3)
        assert found["one writer wins"].state == found["conditional create"].state == "problem"
        assert found["replace"].state == "ok"
    make(store.bucket, port=1)
    found = checks(store.url, 3)
    assert found["write"].state == "problem"
    assert "conditional create" not in found, "one question to a store that does not answer is enough"
    store = make(store.bucket)
    assert store.names("") == []


@pytest.mark.usefixtures("quick")
def test_tokens_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2-of-the-cluster"
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "token"}, "problem"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}, "ok"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": secret}, "warning"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "warning"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "problem"),
    ]
    for variables, state in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            for options in ([], ["--json"]):
                result = pipelines("doctor", tmp_path, *options)
                assert secret not in result.output
            assert checks(tmp_path)["ray token"].state == state, variables


def test_wheels_of_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(wheels: set[str], told: object, gpu: bool = False) -> str:
        monkeypatch.setattr(machine, "_installed", lambda name: "1" if name in wheels else None)
        monkeypatch.setattr(machine, "_child", lambda code: told)
        return machine._faiss(gpu).state

    none, one = {"version": "1", "gpus": 0}, {"version": "1", "gpus": 1}
    assert state(set(), none) == "problem"
    assert state({"faiss-cpu", "faiss-gpu"}, none) == "problem"
    assert state({"faiss-gpu"}, "exit code -6") == "problem"
    assert state({"faiss-gpu"}, none) == "warning"
    assert state({"faiss-gpu"}, one, gpu=True) == "ok"
    assert state({"faiss-cpu"}, none, gpu=True) == "warning"
    assert state({"faiss-cpu"}, none) == "ok"


def test_a_torch_that_sees_no_gpu_or_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_child", lambda code: {"cuda": "12.8", "gpus": []})
    assert (machine._torch(True).state, machine._torch(False).state) == ("warning", "ok")
    monkeypatch.setattr(machine, "_child", lambda code: {"cuda": "12.8", "gpus": [["H", 2**30]]})
    assert "H (1.0 GiB)" in machine._torch(True).found
    monkeypatch.setattr(machine, "_child", lambda code: "exit code -11")
    assert machine._torch(False).state == "problem"


def test_a_child_that_dies_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._child('print("noise"); print("{\\"a\\": 1}")') == {"a": 1}
    assert "exit code -6" in str(machine._child("import os; os.abort()"))
    assert "ImportError: no such" in str(machine._child('raise ImportError("no such")'))
    monkeypatch.setattr(machine, "_PATIENCE", 0.2)
    assert "no answer" in str(machine._child("import time; time.sleep(30)"))


def test_pinned_versions(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    real = machine._installed("click")
    assert real is not None
    lock.write_text(f"# pins\nclick=={real}\nnot-installed-here==1.0\n")
    assert [check.state for check in machine._packages(lock)] == ["ok", "ok"]
    lock.write_text("click==0.1\n")
    found = list(machine._packages(lock))[1]
    assert (found.state, f"click {real} (tested: 0.1)" in found.found) == ("warning", True)
    assert [check.state for check in machine._packages(None)] == ["ok", "ok"]


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sized(free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 0, int(free)))

    for free, shm, disk in ((2**20, "warning", "problem"), (2**31, "ok", "warning"), (2**36, "ok", "ok")):
        sized(free)
        assert (machine._shared_memory().state, storage._disk(tmp_path).state) == (shm, disk)
    for left, state in ((2**20, "problem"), (2**31, "warning"), (2**36, "ok")):
        monkeypatch.setattr(memory, "available", lambda left=left: left)
        assert machine._memory().state == state
    for soft, state in ((256, "warning"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, resource.RLIM_INFINITY))
        assert machine._descriptors().state == state
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert machine._clock().state == "problem"


def test_file_systems_and_encodings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = f"a / overlay rw 0 0\nb {tmp_path}/run nfs4 rw 0 0\nc {tmp_path}/run/fast tmpfs rw 0 0\n"
    (tmp_path / "mounts").write_text(listed)
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    found = {place: storage._kind(tmp_path / place) for place in ("", "run", "run/fast", "runs")}
    assert [found[place].state for place in found] == ["warning", "ok", "warning", "warning"]
    assert found["run"].found == "nfs4"
    assert "reboot" in found["run/fast"].found
    (tmp_path / "free").touch()
    with pytest.raises(storage._Warned, match="one of another host is not"):
        storage._file_lock(tmp_path / "free")
    alone = storage.file_system("nfs4", ["rw", "local_lock=flock"])
    assert (alone.state, "locks stay on this host" in alone.found) == ("warning", True)
    assert storage.file_system("nfs4", ["rw", "vers=4.2", "local_lock=none"]).state == "ok"
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    assert machine._encoding().state == "warning"


def test_help_has_examples() -> None:
    for command in ("doctor", "gc", "verify"):
        result = pipelines(command, "--help")
        assert result.exit_code == 0
        assert f"pipelines {command} s3://" in result.stdout
