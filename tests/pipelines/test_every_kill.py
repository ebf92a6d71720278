"""SIGKILL before and after every storage operation of a two-round loop; the same command then gives the same bytes.

Nothing is stored between a read and the operation after it, so that "after" is tried where something was written.
"""

from __future__ import annotations

import hashlib
import os
import queue
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import write_small_run
from tests.pipelines.kills import READS, Warm

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets

Kind = Literal["local", "s3"]
_CASES = os.environ.get("QUINTAIN_CASES", ":")  # read before a bench clears what could lead to somebody's bucket


@dataclass(frozen=True)
class Case:
    at: int
    after: bool
    operation: str


@dataclass(frozen=True)
class Bench:
    """A run file, a bucket, the digests of the undisturbed run, and a process that runs commands."""

    base: Path
    run_file: Path
    bucket: str
    warm: Warm
    wanted: dict[str, str]

    def place(self, kind: Kind, name: str) -> str:
        return str(self.base / name) if kind == "local" else f"s3://{self.bucket}/{name}"

    def cases(self, kind: Kind) -> list[Case]:
        where = self.place(kind, f"{kind}-counted")
        operations = self.warm.operations("run", self.run_file, "--run-dir", where)
        assert digests(kind, where) == self.wanted
        numbered = list(enumerate(operations, start=1))
        before = [Case(at, False, operation) for at, operation in numbered]
        return before + [Case(at, True, operation) for at, operation in numbered if operation not in READS]

    def wrong(self, kind: Kind, case: Case, warm: Warm) -> str:
        """What is wrong with a run that was killed there and started again; empty when nothing is."""
        name = f"{kind}-{case.at}-{'after' if case.after else 'before'}-{case.operation}"
        where, cache = self.place(kind, name), self.base / f"cache-{name}"
        command = ("run", self.run_file, "--run-dir", where)
        code, said = warm(*command, at=case.at, after=case.after, QUINTAIN_CACHE=str(cache))
        if code != -9:
            return f"{name}: ended with {code} before it was killed: {said}"
        code, said = warm(*command, QUINTAIN_CACHE=str(cache))
        found = digests(kind, where)
        if kind == "local":
            shutil.rmtree(where, ignore_errors=True)
        else:
            buckets.empty(where)
        shutil.rmtree(cache, ignore_errors=True)
        if code != 0:
            return f"{name}: started again it ended with {code}: {said}"
        differ = sorted(each for each in {*found, *self.wanted} if found.get(each) != self.wanted.get(each))
        return f"{name}: other bytes in {differ}" if differ else ""


def digests(kind: Kind, where: str) -> dict[str, str]:
    """MD5 of every file below rounds/, the page apart, which shows seconds."""
    if kind == "s3":
        return buckets.digests_in(where)
    root = Path(where)
    files = [path for path in (root / "rounds").rglob("*") if path.is_file() and "report" not in path.parts]
    return {str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def bench(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with benches(moto, tmp_path_factory.mktemp("kills")) as bench:
        yield bench


@contextmanager
def benches(moto: int, base: Path, **sections: dict[str, Any]) -> Iterator[Bench]:
    run_file = write_small_run(base, encode={"shard_rows": 48}, mine={"shard_anchors": 48}, **sections)
    with pytest.MonkeyPatch.context() as monkeypatch:
        buckets.environment(monkeypatch, moto, base / "cache")
        with Warm() as warm:
            code, said = warm("run", run_file, "--run-dir", base / "undisturbed")
            assert code == 0, said
            wanted = digests("local", str(base / "undisturbed"))
            assert len([name for name in wanted if name.endswith("negatives.parquet")]) == 4
            yield Bench(base, run_file, buckets.new_bucket(moto), warm, wanted)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_some_kills(bench: Bench, kind: Kind) -> None:
    cases = bench.cases(kind)
    assert len(cases) > 600
    for case in random.Random(f"{kind} 1").sample(cases, 3):
        assert not bench.wrong(kind, case, bench.warm)


def test_some_kills_of_a_run_whose_training_does_not_wait(moto: int, tmp_path: Path) -> None:
    with benches(moto, tmp_path, run={"rounds": 3, "refresh": "async", "first_epochs": 1, "epochs": 1}) as bench:
        for case in random.Random(1).sample(bench.cases("local"), 2):
            assert not bench.wrong("local", case, bench.warm)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kill(bench: Bench, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, or those that QUINTAIN_CASES names of the shuffled ones: 0:200, 200:400, and so on."""
    cases = bench.cases(kind)
    # In no order, so that one that is broken off has tried a sample of them all.
    random.Random(0).shuffle(cases)
    first, _, end = _CASES.partition(":")
    cases = cases[int(first or 0) : int(end) if end else None]
    wrong: list[str] = []
    for done, found in enumerate(_each(bench, kind, cases), start=1):
        wrong += [found] if found else []
        if found or done % 50 == 0 or done == len(cases):
            with capsys.disabled():
                print(f"\n{kind}: {done} of {len(cases)} kills, {len(wrong)} of them wrong {found}", flush=True)
    assert not wrong


def _each(bench: Bench, kind: Kind, cases: Sequence[Case]) -> Iterator[str]:
    """What is wrong with each; as many at once as there are cores, each with a warm process of its own."""
    free: queue.Queue[Warm] = queue.Queue()

    def wrong(case: Case) -> str:
        warm = free.get()
        try:
            return bench.wrong(kind, case, warm)
        finally:
            free.put(warm)

    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for _ in range(cores):
            free.put(stack.enter_context(Warm()))
        with ThreadPoolExecutor(cores) as pool:
            yield from pool.map(wrong, cases)
