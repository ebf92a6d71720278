"""A run that lives in an object store: the bytes of a folder, whoever is killed and whatever fails."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.locations import open_store
from miner.artifacts.store import LocalStore
from pipelines import log, places
from pipelines.executors.inline import InlineExecutor
from tests.miner.artifacts.between import Between
from tests.miner.artifacts.conftest import gcs as gcs
from tests.miner.artifacts.conftest import moto as moto
from tests.miner.artifacts.gcs_stand_in import GcsStandIn
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.pages import unpacked
from tests.pipelines.test_loop import hashes, pipelines

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets

_DEADLINE = 240
Place = Callable[[], str]


@pytest.fixture(scope="module")
def place(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Makes a location in a bucket of its own."""
    with buckets.places(moto, tmp_path_factory.mktemp("copies"), "team/run") as made:
        yield made


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    return write_toml(tmp_path_factory.mktemp("run") / "run.toml", raw_settings(folder, mine={"rules": ["default"]}))


@pytest.fixture(scope="module")
def local(run_file: Path) -> dict[str, str]:
    """The files of the run in a folder."""
    result = pipelines("run", run_file, "--run-dir", run_file.parent / "local")
    assert result.exit_code == 0, result.output
    return hashes(run_file.parent / "local")


@pytest.fixture(scope="module")
def finished(run_file: Path, place: Place) -> str:
    location = place()
    result = pipelines("run", run_file, "--run-dir", location)
    assert result.exit_code == 0, result.output
    assert f"page: {location}/report.html" in result.output
    return location


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "open_store", functools.partial(open_store, patience=0.3))


def test_every_file_is_that_of_a_folder(finished: str, local: dict[str, str], run_file: Path) -> None:
    assert buckets.hashes_in(finished) == local
    found, root = buckets.objects(finished), run_file.parent / "local"
    for name in ("settings.json", *(str(path.relative_to(root)) for path in (root / "pairs").iterdir())):
        assert found[name] == (root / name).read_bytes()
    beside = {name.partition("/")[0] for name in found}
    assert beside == {"best", "lease", "log.jsonl", "pairs", "report.html", "rounds", "settings.json"}
    (page,) = (data for name, data in found.items() if name.startswith("rounds/") and name.endswith("/report.html"))
    assert found["report.html"] == page
    stores = (open_store(finished), open_store(str(root)))
    events = [[(line["stage"], line["event"]) for line in log.lines(store)] for store in stores]
    assert events[0] == events[1]
    assert not [name for name, data in found.items() if buckets.SECRET.encode() in data]


def test_a_second_call_does_nothing(finished: str, run_file: Path) -> None:
    before = buckets.versions(finished)
    result = pipelines("run", run_file, "--run-dir", finished)
    assert result.exit_code == 0, result.output
    assert "0 to run" in result.output
    assert buckets.versions(finished) == before


def test_plan_and_status_read_it(finished: str, run_file: Path, place: Place) -> None:
    before = buckets.versions(finished)
    assert "0 to run" in pipelines("plan", run_file, "--run-dir", finished).output
    shown, there = pipelines("status", finished), pipelines("status", run_file.parent / "local")
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[:20] == there.output.splitlines()[:20]
    assert buckets.versions(finished) == before

    nothing = place()
    assert "0 stages reused" in pipelines("plan", run_file, "--run-dir", nothing).output
    result = pipelines("status", nothing)
    assert result.exit_code == 3
    assert f"{nothing}: no run here" in result.output
    assert buckets.objects(nothing) == {}


# What is there in the middle of each stage, and not before it.
MIDDLE = {
    "fit": ("000/fit/", "/epochs/epoch-0000.json"),
    "encode": ("001/encode-text/", "/part-00001.npy.done"),
    "index": ("001/encode-text/", "/manifest.json"),
    "mine": ("001/mine-t2i/", "/anchors-00001.npz.done"),
    "refit": ("001/fit/", "/epochs/epoch-0002.json"),
    "second": ("002/mine-i2t/", "/anchors-00000.npz.done"),
}


def test_a_killed_driver_on_another_machine_each_time(
    run_file: Path, place: Place, local: dict[str, str], tmp_path: Path
) -> None:
    location, chosen = place(), random.Random(7).sample(list(MIDDLE), 3)
    for number, stage in enumerate([*(name for name in MIDDLE if name in chosen), None]):
        process = _start(run_file, location, tmp_path / f"cache-{number}")
        try:
            if stage is not None:
                _wait(process, functools.partial(_seen, location, *MIDDLE[stage]))
                os.kill(process.pid, signal.SIGKILL)
            process.wait(_DEADLINE)
        finally:
            process.kill()
        assert (process.returncode == 0) == (stage is None), _said(tmp_path / f"cache-{number}")
    assert buckets.hashes_in(location) == local
    # No epoch was trained twice: the state after each was in the bucket.
    lines = [line for line in log.lines(open_store(location)) if line["event"] == "epoch"]
    assert set(Counter((line["prefix"], line["epoch"]) for line in lines).values()) == {1}
    assert not [name for name in buckets.objects(location) if "/epochs/" in name or name.endswith(".done")]


def test_of_two_drivers_one_is_refused(run_file: Path, place: Place, local: dict[str, str], tmp_path: Path) -> None:
    location = place()
    process = _start(run_file, location, tmp_path / "cache")
    try:
        _wait(process, functools.partial(_seen, location, "000/fit/", ".json"))
        result = pipelines("run", run_file, "--run-dir", location)
        assert result.exit_code == 5, result.output
        assert f"{location}: another run writes here: " in result.output
        assert f"process {process.pid}" in result.output
        assert "reused" not in result.output  # nothing was planned, let alone done
        assert process.wait(_DEADLINE) == 0, _said(tmp_path / "cache")
    finally:
        process.kill()
        process.wait()
    assert buckets.hashes_in(location) == local


def test_an_overtaken_run_stops(run_file: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    location = place()
    store = open_store(location)
    monkeypatch.setattr(places, "hold_lease", functools.partial(places.hold_lease, seconds=0.3))
    execute, done = InlineExecutor.execute, []

    def overtaken(self: InlineExecutor, task: Any, progress: Any) -> Any:
        made = execute(self, task, progress)
        done.append(task.stage.name)
        if len(done) == 2:
            store.write("lease/9", b"{}")
            time.sleep(1.5)
        return made

    monkeypatch.setattr(InlineExecutor, "execute", overtaken)
    result = pipelines("run", run_file, "--run-dir", location)
    assert result.exit_code == 5, result.output
    assert "was taken over by another run (epoch 9)" in result.output
    assert done == ["r0/fit", "r0/evaluate"]
    assert ("r0/evaluate", "done") not in [(line["stage"], line["event"]) for line in log.lines(store)]


@pytest.mark.parametrize("victim", ["negatives.parquet", "manifest.json"])
def test_a_damaged_object_is_said_and_not_used(finished: str, run_file: Path, place: Place, victim: str) -> None:
    location = place()
    buckets.copy(finished, location)
    store = open_store(location)
    name = next(each for each in buckets.objects(location) if "/001/mine-t2i/" in each and each.endswith(f"/{victim}"))
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 4
    store.write(name, bytes(data))
    for folder in ("rounds/001/fit", "rounds/002", "rounds/000/report", "rounds/report"):
        store.remove(folder)
    result = pipelines("run", run_file, "--run-dir", location)
    assert result.exit_code == 4, result.output
    assert f"error: {location}/{name.rpartition('/')[0]}" in result.output
    assert "run the command that made it again" in result.output


def test_a_server_that_is_down(run_file: Path, place: Place, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    location = place()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for command in (("run", run_file, "--run-dir", location), ("status", location)):
            result = pipelines(*command)
            assert result.exit_code == 75, result.output
            assert "cannot be reached" in result.output
            assert "Traceback" not in result.output


def test_a_bucket_that_is_not_there(run_file: Path, place: Place, impatient: None) -> None:
    place()
    wrong = "s3://no-such-bucket-here/run"
    for command in (("run", run_file, "--run-dir", wrong), ("plan", run_file, "--run-dir", wrong), ("status", wrong)):
        result = pipelines(*command)
        assert result.exit_code == 3, result.output
        assert "there is no bucket 'no-such-bucket-here'" in result.output
    assert pipelines("run", run_file, "--run-dir", "ftp://host/run").exit_code == 3


def test_a_server_without_conditions_is_refused_before_any_work(
    run_file: Path, place: Place, moto: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = place()
    with Between(moto, dropped=frozenset({"if-none-match"})) as server, monkeypatch.context() as through:
        through.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        result = pipelines("run", run_file, "--run-dir", location)
    assert result.exit_code == 3, result.output
    assert "ignores the condition of a create" in result.output
    assert buckets.objects(location) == {}


def test_a_run_in_google_cloud_storage(
    folder: Path, gcs: GcsStandIn, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = write_toml(tmp_path / "run.toml", raw_settings(folder, run={"rounds": 1}, mine={"rules": ["default"]}))
    assert pipelines("run", run_file, "--run-dir", tmp_path / "local").exit_code == 0
    wanted = hashes(tmp_path / "local")
    given = {"GOOGLE_BASE_URL": gcs.url, "GOOGLE_ALLOW_HTTP": "true", "GOOGLE_BEARER_TOKEN": buckets.SECRET}
    for name, value in {**given, "GCE_METADATA_HOST": "127.0.0.1:1", "GCE_METADATA_IP": "127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    result = pipelines("run", run_file, "--run-dir", "gs://runs/team")
    assert result.exit_code == 0, result.output
    store = open_store("gs://runs/team")
    assert {name: hashlib.sha256(store.read(name)).hexdigest() for name in wanted} == wanted
    assert "0 to run" in pipelines("plan", run_file, "--run-dir", "gs://runs/team").output
    assert pipelines("status", "gs://runs/team").exit_code == 0


def test_a_folder_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("run", "./other/../run", f"file://{tmp_path}/run", f"{tmp_path}/run"):
        assert places.place(location) == LocalStore(tmp_path / "run")
    with pytest.raises(BadInput, match="is no folder"):
        places.place("")


def _start(run_file: Path, location: str, cache: Path) -> subprocess.Popen[bytes]:
    """`pipelines run` in this process' environment, on a machine that has nothing of the bucket."""
    cache.mkdir()
    environment = {**os.environ, "QUINTAIN_CACHE": str(cache)}
    command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", location]
    with open(cache / "said", "wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment)


def _said(cache: Path) -> str:
    return (cache / "said").read_text()[-4000:]


def _seen(location: str, begin: str, end: str) -> bool:
    """Whether the stage is that far, or was: what is there in its middle alone may come and go between two looks."""
    there = [name for name in buckets.versions(location) if name.startswith(f"rounds/{begin}")]
    return any(name.endswith((end, "/manifest.json")) for name in there)


def _wait(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    stop = time.monotonic() + _DEADLINE
    while not reached():
        assert process.poll() is None, f"ended with {process.returncode} before the middle was seen"
        assert time.monotonic() < stop, f"nothing happened within {_DEADLINE} s"
        time.sleep(0.03)


def test_the_page_of_a_run_in_a_bucket(finished: str, tmp_path: Path) -> None:
    before = buckets.objects(finished)
    result = pipelines("report", finished, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    arrays, values = unpacked((tmp_path / "page.html").read_text())
    assert values["i2t"]["rules"] == ["look-alike"]
    assert arrays["i2t.dropped"].sum() > 0
    assert buckets.objects(finished) == before
    assert "--verdicts FILE" in pipelines("serve", finished).output
