"""A second writer is turned away before it works; a dead one is replaced; epochs grow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from miner.artifacts import lease as leases
from miner.artifacts.errors import AnotherWriter
from miner.artifacts.lease import hold_lease
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore, Store
from tests.miner.artifacts.between import Between, Reply, Request

ROOT = Path(__file__).parents[3]


def _term(store: Store) -> dict:
    return json.loads(store.read(f"lease/{store.names('lease')[-1]}"))


def _write(store: Store, epoch: int, **changes: object) -> None:
    """A lease of another machine."""
    now = time.time()
    term = {"holder": "eve", "since": now, "until": now + 60, "seconds": 60, "released": False, "token": "t", "pid": 1}
    store.write(f"lease/{epoch}", json.dumps({**term, "place": "elsewhere", **changes}).encode())


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_writer_is_told_who_holds_it(store: Store) -> None:
    with hold_lease(store, holder="ann on one, process 7 (pipelines)") as first:
        assert first.epoch == 1
        with pytest.raises(AnotherWriter) as caught, hold_lease(store):
            pass
        first.check()
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    sentence = (
        re.escape(f"{store.url}: another run writes here: ann on one, process 7 (pipelines), since ")
        + rf"{clock}; its lease \(epoch 1\), which it renews, is until {clock}\. Wait for it to end, or write "
        + rf"elsewhere; if it was killed on another machine, it is free after {clock}\."
    )
    assert re.fullmatch(sentence, str(caught.value))


def test_a_released_lease_is_free_at_once_and_epochs_grow(store: Store) -> None:
    for epoch in (1, 2, 3):
        with hold_lease(store) as held:
            assert held.epoch == epoch
        assert store.names("lease") == [str(epoch)]
    with pytest.raises(RuntimeError), hold_lease(store):
        raise RuntimeError
    with hold_lease(store) as held:
        assert held.epoch == 5


def test_of_many_at_once_one_gets_it(store: Store) -> None:
    start, end = threading.Barrier(6), threading.Event()

    def ask(writer: int) -> int:
        start.wait()
        try:
            with hold_lease(store, holder=f"writer {writer}") as held:
                end.wait(30)
                held.check()
                return held.epoch
        except AnotherWriter:
            return 0

    futures: list = []
    with ThreadPoolExecutor(6) as pool:
        futures.extend(pool.submit(ask, writer) for writer in range(6))
        _wait(lambda: sum(future.done() for future in futures) >= 5)
        end.set()
        assert sorted(future.result() for future in futures) == [0] * 5 + [1]


def test_a_lease_that_is_over_is_taken_over(store: Store) -> None:
    _write(store, 7, until=time.time() - 31)
    with hold_lease(store) as held:
        assert held.epoch == 8
        assert store.names("lease") == ["8"]


def test_clocks_may_differ_by_the_skew(store: Store) -> None:
    _write(store, 1, until=time.time() - 20)
    with pytest.raises(AnotherWriter, match="it is free after"), hold_lease(store):
        pass
    with hold_lease(store, skew=10) as held:
        assert held.epoch == 2


def test_a_clock_far_ahead_is_named(store: Store) -> None:
    _write(store, 1, until=time.time() + 86400)
    with pytest.raises(AnotherWriter, match=r"clock is ahead.*delete lease/1 there"), hold_lease(store):
        pass
    store.remove("lease/1")
    with hold_lease(store):
        pass


@pytest.mark.parametrize("left", [b"", b"{}", b"[1]", b'{"holder": 1', b'{"until": 1e400}', b"\xff\xfe"])
def test_what_is_no_lease_holds_nobody_back(tmp_path: Path, left: bytes) -> None:
    store = LocalStore(tmp_path)
    store.write("lease/4", left)
    store.write("lease/notes.txt", b"x")
    with hold_lease(store) as held:
        assert held.epoch == 5


def test_the_heartbeat_keeps_it(store: Store) -> None:
    with hold_lease(store, seconds=1.5) as held:
        first = _term(store)
        _wait(lambda: _term(store)["until"] > first["since"] + 3)
        with pytest.raises(AnotherWriter), hold_lease(store, skew=0.5):
            pass
        held.check()
        assert _term(store)["since"] == first["since"]
        names = {thread.name for thread in threading.enumerate()}
        assert f"lease of {store.url}" in names
    assert f"lease of {store.url}" not in {thread.name for thread in threading.enumerate()}
    assert _term(store)["released"]


def test_who_was_overtaken_learns_it_and_leaves_the_new_one_alone(store: Store) -> None:
    with hold_lease(store, seconds=0.3) as held:
        _write(store, 2)

        _wait(lambda: held._lost is not None)
        with pytest.raises(AnotherWriter, match=r"epoch 1\) was taken over by eve, since .* \(epoch 2\)"):
            held.check()
    assert store.names("lease")[-1] == "2"
    assert _term(store)["holder"] == "eve"
    assert not _term(store)["released"]


def test_an_old_epoch_made_late_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who saw the epochs before they were cleared away creates one below the newest."""
    store = LocalStore(tmp_path)
    _write(store, 5)
    seen = iter([2])
    newest = leases._newest
    monkeypatch.setattr(leases, "_newest", lambda *a: next(seen, None) or newest(*a))
    with pytest.raises(AnotherWriter, match="eve"), hold_lease(store):
        pass
    assert store.names("lease") == ["5"]


_HOLDER = """
import sys, time
from miner.artifacts.lease import hold_lease
from miner.artifacts.locations import open_store
with hold_lease(open_store(sys.argv[1]), seconds=float(sys.argv[2]), skew=0.0) as held:
    print(held.epoch, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_killed_holder(store: Store, same_machine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine its lease is free at once, elsewhere when it is over."""
    seconds = 600.0 if same_machine else 3.0
    if not same_machine:
        monkeypatch.setattr(leases, "_place", lambda: "another machine")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, store.url, str(seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "1"
        with pytest.raises(AnotherWriter, match=f"process {holder.pid}"), hold_lease(store, skew=0.0):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    if not same_machine:
        with pytest.raises(AnotherWriter), hold_lease(store, skew=0.0):
            pass
        _wait(lambda: _term(store)["until"] < time.time())
    with hold_lease(store, skew=0.0) as held:
        assert held.epoch == 2


def test_a_store_that_fails_for_a_while_loses_no_lease(moto: int, s3: Callable[..., ObjectStore]) -> None:
    broken = threading.Event()

    def rule(_: Request) -> Reply | None:
        return Reply(403, "AccessDenied") if broken.is_set() else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port, patience=0.2)
        with hold_lease(store, seconds=0.3) as held:
            broken.set()
            count = len(server.seen)
            _wait(lambda: len(server.seen) > count + 2)
            broken.clear()
            until = _term(store)["until"]
            _wait(lambda: _term(store)["until"] > until)
            held.check()
            broken.set()
        broken.clear()
        assert not _term(store)["released"]


def test_a_create_whose_answer_was_lost_is_ones_own(moto: int, s3: Callable[..., ObjectStore]) -> None:
    def rule(request: Request) -> Reply | None:
        return Reply(500, "InternalError", after=True) if request.method == "PUT" and request.number == 1 else None

    with Between(moto, rule) as server:
        store = s3(s3().bucket, port=server.port)
        with hold_lease(store) as held:
            assert held.epoch == 1
            held.check()
