"""Eight processes that want the same at the same moment: one gets it. Who was stopped for a while changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miner.artifacts.errors import AnotherWriter
from miner.artifacts.lease import hold_lease
from miner.artifacts.locations import open_store
from miner.artifacts.manifest import find_artifact
from pipelines import log, places
from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import hashes, pipelines
from tests.pipelines.writers import Found, write

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets

ROOT = Path(__file__).parents[2]
WRITERS = 8
_DEADLINE = 300


@pytest.fixture(scope="module")
def bucket(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    with buckets.places(moto, tmp_path_factory.mktemp("copies"), "races") as made:
        yield made


@pytest.mark.parametrize("races", [12, pytest.param(1000, marks=pytest.mark.heavy)])
def test_of_eight_processes_one_wins(
    races: int, bucket: Callable[[], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name, an artifact, a place to write in: by links and the kernel's lock in a folder, else by conditions."""
    locations = [str(tmp_path), bucket()]
    context = multiprocessing.get_context("spawn")
    start, held, queue = context.Barrier(WRITERS), context.Barrier(WRITERS), context.Queue()
    writers = [
        context.Process(target=write, args=(number, locations, races, start, held, queue)) for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    try:
        seen: dict[int, dict[str, list[Found]]] = dict(queue.get(timeout=_DEADLINE + 4 * races) for _ in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    for location in locations:
        store, wrong, winners = open_store(location), [], set()
        for race in range(races):
            won, made, let_in = zip(*(seen[number][location][race] for number in range(WRITERS)), strict=True)
            artifact = find_artifact(store, f"{race}/artifact")
            assert artifact is not None
            one_each = sum(won) == sum(let_in) == len(set(made)) == 1
            kept = artifact.manifest.meta["writer"] == made[0]
            if not (one_each and kept and store.read(f"{race}/name") == f"writer {won.index(True)}".encode()):
                wrong.append((race, won, made, let_in))
            winners |= {won.index(True)} if any(won) else set()
        if races == 1000:
            with capsys.disabled():
                print(f"\n{location}: {races} races of {WRITERS} processes, {len(wrong)} without exactly one winner")
        assert not wrong
        assert len(winners) > 1  # nobody is always the first


def test_nothing_is_written_past_a_lease_that_is_over(bucket: Callable[[], str], tmp_path: Path) -> None:
    """Whoever was stopped learns it at the first write, not only at the next heartbeat."""
    plain = open_store(bucket())
    plain.write("a", b"1")
    with hold_lease(plain, seconds=600) as lease:
        store = places.guarded(plain, lease.check)
        store.write("a", b"2")
        lease._term = dataclasses.replace(lease._term, until=time.time() - 1)
        store.write("a", b"3")  # over by the clock, but nobody took it: it is renewed
        assert lease._term.until > time.time() + 500
        lease._term = dataclasses.replace(lease._term, until=time.time() - 1)
        plain.write("lease/2", b"{}")
        (tmp_path / "file").write_bytes(b"4")
        for act in (
            lambda: store.create("b", b"4"),
            lambda: store.write("a", b"4"),
            lambda: store.put("a", tmp_path / "file"),
            lambda: store.remove("a"),
        ):
            with pytest.raises(AnotherWriter, match=r"epoch 1\) was taken over by another run \(epoch 2\)"):
                act()
        assert store.read("a") == b"3"
        assert store == plain
        assert pickle.loads(pickle.dumps(store)).create("b", b"of a worker")  # the lease is of one process
    assert plain.names("") == ["a", "b", "lease"]


_RUN = """
import functools, sys
from pipelines import places
places.hold_lease = functools.partial(places.hold_lease, seconds=2.0, skew=1.0)
from pipelines.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("zombie")
    raw = raw_settings(
        write_vectors(base, num=48),
        run={"rounds": 1, "first_epochs": 2, "epochs": 1},
        mine={"k": 4},
        watch={"trackers": []},
    )
    return write_toml(base / "run.toml", raw)


@pytest.fixture(scope="module")
def wanted(run_file: Path) -> dict[str, str]:
    assert pipelines("run", run_file, "--run-dir", run_file.parent / "alone").exit_code == 0
    return hashes(run_file.parent / "alone")


def _stopped(run_file: Path, location: str, lines: int, said: Path) -> subprocess.Popen[bytes]:
    """A run that was stopped once its log had so many lines; its lease goes on until it is over."""
    with open(said, "wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-c", _RUN, "run", str(run_file), "--run-dir", location],
            stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**os.environ, "QUINTAIN_CACHE": str(said.with_suffix(".cache"))},
        )  # fmt: skip
    store, end = open_store(location), time.monotonic() + _DEADLINE
    while len(log.lines(store)) < lines:
        assert run.poll() is None, said.read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    run.send_signal(signal.SIGSTOP)
    return run


@pytest.mark.parametrize("lines", [4, *(pytest.param(n, marks=pytest.mark.heavy) for n in range(1, 22))])
def test_a_stopped_run_that_was_overtaken_changes_nothing(
    lines: int,
    run_file: Path,
    wanted: dict[str, str],
    bucket: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    location, said = bucket(), tmp_path / "said"
    stopped = _stopped(run_file, location, lines, said)
    try:
        monkeypatch.setattr(places, "hold_lease", functools.partial(hold_lease, seconds=2.0, skew=1.0))
        refused = pipelines("run", run_file, "--run-dir", location)
        end = time.monotonic() + _DEADLINE
        while (done := pipelines("run", run_file, "--run-dir", location)).exit_code == 5:
            assert f"process {stopped.pid}" in done.output
            assert time.monotonic() < end
            time.sleep(0.2)
        assert refused.exit_code in (0, 5)
        assert done.exit_code == 0, done.output
        assert buckets.hashes_in(location) == wanted
        before = _tags(location)
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(_DEADLINE) == 5, said.read_text()
    finally:
        stopped.kill()
        stopped.wait()
    assert "was taken over by " in said.read_text()
    assert "Traceback" not in said.read_text()
    assert _tags(location) == before
    assert pipelines("verify", location).exit_code == 0
    assert "0 to run" in pipelines("run", run_file, "--run-dir", location).output


def _tags(location: str) -> dict[str, object]:
    """The log apart: of a request that was under way when the run was stopped, the library may send it once more."""
    return {name: tag for name, (tag, _) in buckets.versions(location).items() if name != log.LOG}


def test_a_stopped_run_keeps_its_folder(run_file: Path, wanted: dict[str, str], tmp_path: Path) -> None:
    """The kernel's lock is held as long as a process lives, so nobody can take over, and it goes on undisturbed."""
    root, said = tmp_path / "run", tmp_path / "said"
    stopped = _stopped(run_file, str(root), 4, said)
    try:
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        for command in (("run", run_file, "--run-dir", root), ("gc", root, "--delete")):
            result = pipelines(*command)
            assert result.exit_code == 5, result.output
            assert "another command is writing in this folder" in result.output
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(_DEADLINE) == 0, said.read_text()
    finally:
        stopped.kill()
        stopped.wait()
    assert hashes(root) == wanted
