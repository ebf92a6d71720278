"""An object store that answers wrongly, once at any request: the run goes on, or says what to do; nothing is lost.

The wrong answer comes after the server has done what was asked, or in place of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.miner.artifacts.between import Between, Reply, Request
from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import write_small_run
from tests.pipelines.kills import Warm

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets

# Answers to one request. A 403 is not repeated by anybody, and 412 to what is no condition neither.
FAULTS = {
    "500 after": Reply(500, "InternalError", after=True),
    "503": Reply(503, "SlowDown"),
    "503 after": Reply(503, "SlowDown", after=True),
    "409": Reply(409, "ConditionalRequestConflict"),
    "409 after": Reply(409, "ConditionalRequestConflict", after=True),
    "412": Reply(412, "PreconditionFailed"),
    "412 after": Reply(412, "PreconditionFailed", after=True),
    "403": Reply(403, "AccessDenied"),
    "cut": Reply(cut=1),
}


@dataclass(frozen=True)
class Bench:
    run_file: Path
    warm: Warm
    wanted: dict[str, str]
    bucket: str
    moto: int

    def requests(self) -> int:
        """How many a run sends that is left alone."""
        with Between(self.moto) as server:
            code, said = self._run("counted", server.port)
            assert code == 0, said
            return len(server.seen)

    def wrong(self, number: int, fault: str) -> str:
        """What is wrong with a run whose request of that number is answered so, and with the same command again."""
        where, name = f"{number}-{fault.replace(' ', '-')}", f"request {number}: {fault}"
        location = f"s3://{self.bucket}/{where}"

        with Between(self.moto) as server:

            def rule(_: Request) -> Reply | None:
                return FAULTS[fault] if len(server.seen) == number else None

            server.rule = rule
            code, said = self._run(where, server.port)
        sentences = [line for line in said.splitlines() if line.startswith("error: ")]
        if code not in (0, 3, 5, 75) or "Traceback" in said or len(sentences) != (code != 0) or buckets.SECRET in said:
            return f"{name}: ended with {code}: {said}"
        if code == 0 and buckets.digests_in(location) != self.wanted:
            return f"{name}: other bytes"
        code, said = self._run(where, self.moto)
        if code != 0 or buckets.digests_in(location) != self.wanted:
            return f"{name}: started again it ended with {code}, with other bytes perhaps: {said}"
        buckets.empty(location)
        return ""

    def _run(self, where: str, port: int) -> tuple[int, str]:
        environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        return self.warm("run", self.run_file, "--run-dir", f"s3://{self.bucket}/{where}", **environment)


@pytest.fixture(scope="module")
def bench(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    base = tmp_path_factory.mktemp("faults")
    run_file = write_small_run(base, run={"rounds": 1}, encode={"shard_rows": 48}, mine={"shard_anchors": 48})
    with pytest.MonkeyPatch.context() as monkeypatch:
        buckets.environment(monkeypatch, moto, base / "cache")
        bucket = buckets.new_bucket(moto)
        with Warm() as warm:
            code, said = warm("run", run_file, "--run-dir", f"s3://{bucket}/undisturbed")
            assert code == 0, said
            yield Bench(run_file, warm, buckets.digests_in(f"s3://{bucket}/undisturbed"), bucket, moto)


def test_some_answers(bench: Bench) -> None:
    chosen = random.Random(6)
    total = bench.requests()
    assert total > 200
    for fault in chosen.sample(sorted(FAULTS), 3):
        assert not bench.wrong(chosen.randrange(1, total), fault)


@pytest.mark.parametrize(("times", "code"), [(1, 0), (100, 75)])
def test_a_manifest_that_is_said_to_be_there_but_is_not(bench: Bench, times: int, code: int) -> None:
    where, refused = f"refused-{times}", []
    with Between(bench.moto) as server:

        def rule(request: Request) -> Reply | None:
            if request.method != "PUT" or "manifest" not in request.path:
                return None
            refused.append(request.path)
            return FAULTS["412"] if len(refused) <= times else None

        server.rule = rule
        ended, said = bench._run(where, server.port)
    assert (ended, bool(refused)) == (code, True), said
    assert "Traceback" not in said
    assert ("says that it is there already and does not find it; run the same" in said) == (code == 75)
    assert bench._run(where, bench.moto)[0] == 0
    assert buckets.digests_in(f"s3://{bench.bucket}/{where}") == bench.wanted


@pytest.mark.heavy
def test_every_answer(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """One fault per request, each in turn."""
    names = sorted(FAULTS)
    every = [(number, names[number % len(names)]) for number in range(1, bench.requests() + 1)]
    random.Random(0).shuffle(every)
    wrong: list[str] = []
    for done, (number, fault) in enumerate(every, start=1):
        found = bench.wrong(number, fault)
        wrong += [found] if found else []
        if found or done % 50 == 0 or done == len(every):
            with capsys.disabled():
                print(f"\n{done} of {len(every)} answers of a store, {len(wrong)} of them wrong {found}", flush=True)
    assert not wrong
