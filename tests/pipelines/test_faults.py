"""A disk that fails, at every call of a run or where it is full: one sentence, an exit code, and nothing is lost.

The same command, once the disk is well, gives the bytes of the undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipelines.builders import write_small_run
from tests.pipelines.faults import ERRORS, Fault
from tests.pipelines.kills import Warm
from tests.pipelines.test_loop import hashes

_CODES = {"EACCES": 3, "EIO": 75, "ENOSPC": 75, "EFBIG": 75}


@dataclass(frozen=True)
class Bench:
    base: Path
    run_file: Path
    warm: Warm
    wanted: dict[str, str]

    def wrong(self, root: Path, fault: Fault) -> str:
        """What is wrong with a run that meets a fault, and with the same command after it; empty when nothing is."""
        code, said = self.warm("run", self.run_file, "--run-dir", root, fault=fault)
        name = f"{fault}: ended with {code}"
        # What only tidies up may fail without a word: then all is there.
        if (code != 0 or hashes(root) != self.wanted) and code != _CODES[fault.error]:
            return f"{name}: {said}"
        if spoken(code, said):
            return f"{name}, {spoken(code, said)}: {said}"
        return self.wrong_again(root, name)

    def wrong_again(self, root: Path, name: str) -> str:
        code, said = self.warm("run", self.run_file, "--run-dir", root)
        if code != 0:
            return f"{name}; started again with {code}: {said}"
        if hashes(root) != self.wanted:
            return f"{name}; started again, other bytes"
        code, said = self.warm("verify", root)
        return f"{name}; verify: {said}" if code else ""


def spoken(code: int, said: str) -> str:
    """What is wrong with how a command ended; empty when it is one sentence, or nothing when all went well."""
    if "Traceback" in said:
        return "a traceback"
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    return "" if len(sentences) == (code != 0) else "not one sentence"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    base = tmp_path_factory.mktemp("faults")
    run_file = write_small_run(base, run={"rounds": 1})
    with Warm() as warm:
        code, said = warm("run", run_file, "--run-dir", base / "undisturbed")
        assert code == 0, said
        yield Bench(base, run_file, warm, hashes(base / "undisturbed"))


def faults(bench: Bench, root: Path) -> list[Fault]:
    """One at every call, each of the errors that it can answer in turn."""
    calls = bench.warm.calls("run", bench.run_file, "--run-dir", root, fault=Fault(str(root)))
    shutil.rmtree(root)
    assert set(calls) == set(ERRORS)
    seen = dict.fromkeys(ERRORS, 0)
    found = []
    for at, call in enumerate(calls, start=1):
        found.append(Fault(str(root), at, ERRORS[call][seen[call] % len(ERRORS[call])]))
        seen[call] += 1
    return found


def test_some_faults(bench: Bench, tmp_path: Path) -> None:
    every = faults(bench, tmp_path / "run")
    assert len(every) > 300
    for fault in random.Random(4).sample(every, 4):
        assert not bench.wrong(tmp_path / "run", fault)
        shutil.rmtree(tmp_path / "run")


@pytest.mark.heavy
def test_every_fault(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = faults(bench, tmp_path / "run")
    random.Random(0).shuffle(every)
    wrong: list[str] = []
    for done, fault in enumerate(every, start=1):
        found = bench.wrong(tmp_path / "run", fault)
        wrong += [found] if found else []
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if found or done % 50 == 0 or done == len(every):
            with capsys.disabled():
                print(f"\n{done} of {len(every)} faults of the disk, {len(wrong)} of them wrong {found}", flush=True)
    assert not wrong


@pytest.mark.parametrize("number", [2, pytest.param(40, marks=pytest.mark.heavy)])
def test_files_that_may_not_grow(bench: Bench, number: int, tmp_path: Path) -> None:
    """Short writes: a file is cut at a size that some file of the run passes."""
    sizes = sorted({path.stat().st_size for path in (bench.base / "undisturbed" / "rounds").rglob("*.*")})
    limits = random.Random(2).sample(range(6000, sizes[-1]), number)  # less would cut what the command says
    for limit in limits:
        fault = Fault(str(tmp_path / "run"), limit=limit, error="EFBIG")
        assert not bench.wrong(tmp_path / "run", fault)
        shutil.rmtree(tmp_path / "run")


@contextlib.contextmanager
def disk(where: Path, kib: int) -> Iterator[Path]:
    """A file system of so many KiB, which is memory."""
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", where], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        where.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
@pytest.mark.parametrize("number", [2, pytest.param(60, marks=pytest.mark.heavy)])
def test_a_full_disk(bench: Bench, number: int, tmp_path: Path) -> None:
    files = (path.stat() for path in (bench.base / "undisturbed").rglob("*") if path.is_file())
    size_of = {file.st_ino: file.st_size for file in files}  # by inode: what has two names takes its place once
    needed = sum(4 * -(-size // 4096) for size in size_of.values())
    for kib in random.Random(1).sample(range(4, needed, 4), number):
        with disk(tmp_path / "disk", kib) as place:
            root = place / "run"
            code, said = bench.warm("run", bench.run_file, "--run-dir", root)
            assert code == 75, f"{kib} KiB: ended with {code}: {said}"
            assert not spoken(code, said)
            assert "the disk would not take the data: No space left on device" in said
            subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)
            assert not bench.wrong_again(root, f"{kib} KiB")
