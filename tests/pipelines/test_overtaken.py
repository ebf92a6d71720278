"""A command whose lease is taken over, before any of its writes, changes nothing in the store from then on."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from miner.artifacts.lease import Lease, hold_lease
from miner.artifacts.locations import open_store
from miner.artifacts.store import Store
from pipelines import places
from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import pipelines

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets


@pytest.fixture(scope="module")
def location(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with buckets.places(moto, tmp_path_factory.mktemp("copies"), "overtaken") as made:
        yield made()


@dataclasses.dataclass
class Overtaken:
    """Each command that holds the lease loses it when it asks for the `at`th time whether it has it."""

    location: str
    at: int = 0
    asked: int = 0
    then: dict[str, Any] = dataclasses.field(default_factory=dict)

    @contextmanager
    def hold(self, store: Store) -> Iterator[Lease]:
        with hold_lease(store, seconds=600) as lease:
            check, self.asked = lease.check, 0

            def ask() -> None:
                self.asked += 1
                if self.asked == self.at:
                    lease._term = dataclasses.replace(lease._term, until=time.time() - 1)
                    open_store(self.location).write(f"lease/{lease.epoch + 1}", b"{}")
                    self.then = buckets.versions(self.location)
                check()

            lease.check = ask  # type: ignore[method-assign]  # the moment of losing it is chosen here
            yield lease

    def every(self, *command: object) -> int:
        """Until the command was never overtaken; how often it was."""
        for self.at in itertools.count(1):
            done = pipelines(*command)
            if done.exit_code == 0 and self.asked < self.at:
                return self.at - 1
            assert done.exit_code == 5, done.output
            assert "was taken over by another run" in done.output
            assert buckets.versions(self.location) == self.then
        raise AssertionError


def test_who_was_overtaken_deletes_and_copies_nothing(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_vectors(tmp_path, num=48)

    def run_file(k: int) -> Path:
        raw = raw_settings(
            folder,
            run={"rounds": 1, "first_epochs": 2, "epochs": 1},
            mine={"k": k},
            watch={"trackers": []},
        )
        return write_toml(tmp_path / f"{k}.toml", raw)

    for k in (4, 5):
        assert pipelines("run", run_file(k), "--run-dir", location).exit_code == 0
    overtaken = Overtaken(location)
    monkeypatch.setattr(places, "hold_lease", overtaken.hold)
    assert overtaken.every("gc", location, "--delete") >= 5
    open_store(location).remove("best/weights.safetensors")
    open_store(location).remove("report.html")
    assert overtaken.every("run", run_file(5), "--run-dir", location) >= 5
    assert pipelines("verify", location).exit_code == 0
