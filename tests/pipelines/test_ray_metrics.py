"""A run's figures where Prometheus finds those of its Ray cluster: scraped from a real one while the run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.pipelines.builders import raw_settings, write_toml

_DEADLINE = 240
_HEAD = """
import sys, time, ray
context = ray.init(
    address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _metrics_export_port=int(sys.argv[1]),
    _system_config={"metrics_report_interval_ms": 500},
)
from pipelines.executors import observers_of
from pipelines.resources import ExecutorConfig
from pipelines.trackers import Event
from pipelines.trackers._watch import Watch
watch = Watch(print)
for name, connect in observers_of(ExecutorConfig()):
    watch.add(name, connect)
for kind, more in [
    ("run_start", {}), ("round_done", {"round": 1, "figures": {"dev/rsum": 210.5}, "again": True}),
    ("shard_done", {"round": 2, "stage": "mine-i2t", "shard": 3}),
    ("stage_done", {"round": 2, "stage": "mine-i2t", "seconds": 1.5}),
]:
    watch.tell(Event(kind, "/runs/one", time.time(), **more))
watch.close()
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """(address of a cluster, port of its metrics)."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    ours = {"HOME": tmp_path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in ours.items():
        monkeypatch.setenv(name, str(value))
    process = subprocess.Popen(
        [sys.executable, "-c", _HEAD, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def scraped(port: int) -> dict[str, float]:
    """Our figures by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = {}
    for family in families:
        for sample in family.samples:
            if "quintain" in sample.name:
                where = [
                    sample.labels[label]
                    for label in ("run", "round", "stage", "split", "metric")
                    if label in sample.labels
                ]
                found[" ".join([sample.name, *where])] = sample.value
    return found


def test_what_is_told_is_scraped(head: tuple[str, int]) -> None:
    found, end = dict[str, float](), time.monotonic() + _DEADLINE
    while "ray_quintain_stage_seconds /runs/one 2 mine-i2t" not in found and time.monotonic() < end:
        with contextlib.suppress(OSError):  # the agent that answers starts a moment after the cluster
            found |= scraped(head[1])
        time.sleep(0.1)
    assert found["ray_quintain_stage_seconds /runs/one 2 mine-i2t"] == 1.5
    assert found["ray_quintain_stage_shards_done /runs/one 2 mine-i2t"] == 3
    assert found["ray_quintain_running /runs/one"] == 1
    assert found["ray_quintain_round /runs/one"] == 1
    assert found["ray_quintain_metric /runs/one dev rsum"] == 210.5


@pytest.mark.heavy
def test_figures_of_a_run_are_metrics_of_its_cluster(head: tuple[str, int], folder: Path, tmp_path: Path) -> None:
    address, port = head
    root = tmp_path / "run"
    raw = raw_settings(folder, run={"rounds": 0, "first_epochs": 2})
    run_file = write_toml(tmp_path / "run.toml", {**raw, "executor": {"kind": "ray", "address": address}})
    command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", str(root)]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    wanted, found = f"ray_quintain_stage_seconds {root} 0 fit", dict[str, float]()
    try:
        end = time.monotonic() + _DEADLINE
        while wanted not in found and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                found |= scraped(port)
        assert process.wait(_DEADLINE) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert found[wanted] >= 0
    assert found[f"ray_quintain_running {root}"] == 1
    assert found[f"ray_quintain_epoch {root}"] == 1
    assert "ray metrics:" not in (tmp_path / "log").read_text()
