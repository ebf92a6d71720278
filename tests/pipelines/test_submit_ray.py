"""`pipelines submit` on a real Ray head, with its token."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from miner.artifacts.errors import Retryable
from pipelines.ray_jobs import Cluster
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_submit import TOKEN, environment, run_file, submit

__all__ = ["environment", "run_file"]  # fixtures

_DEADLINE = 240


def ports(number: int) -> list[int]:
    """Free ports, all different."""
    held = [socket.socket() for _ in range(number)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's URL of a Ray head that is ended with all it started; a home and a token of its own."""
    pytest.importorskip("aiohttp", reason="Ray's dashboard needs ray[default]")
    home = tmp_path_factory.mktemp("ray-home")
    agents = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
    names = ("port", "dashboard-port", "metrics-export-port", *agents)
    chosen = dict(zip(names, ports(len(names)), strict=True))
    # Ray's sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="q", ignore_cleanup_errors=True) as folder:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
            "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1",
            *(f"--{name}={port}" for name, port in chosen.items()),
        ]  # fmt: skip
        environment = {
            **os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        log = open(home / "ray.log", "wb")  # noqa: SIM115 - the process holds it
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        there = Cluster(f"http://127.0.0.1:{chosen['dashboard-port']}", TOKEN)
        try:
            end = time.monotonic() + _DEADLINE
            while True:
                assert head.poll() is None, (home / "ray.log").read_text()
                assert time.monotonic() < end, (home / "ray.log").read_text()
                with contextlib.suppress(Retryable):
                    there._ask("GET", "/api/jobs/", patience=0)
                    break
                time.sleep(0.5)
            yield there.url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()
            log.close()


def started(run_file: Path, root: Path, url: str) -> subprocess.Popen[str]:
    """`pipelines submit --json` that waits, as a process of its own."""
    command = [sys.executable, "-m", "pipelines", "submit", str(run_file), "--run-dir", str(root), "--address", url]
    command += ["--json", "--every", "0.2"]
    environment = {**os.environ, "RAY_AUTH_TOKEN": TOKEN}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(cluster: Cluster, job: str, wanted: str) -> None:
    end = time.monotonic() + _DEADLINE
    while cluster.job(job)["status"] != wanted:
        assert time.monotonic() < end, cluster.log(job)
        time.sleep(0.2)


def test_a_job_is_stopped_then_goes_on_then_is_refused(
    environment: pytest.MonkeyPatch, cluster: str, run_file: Path
) -> None:
    root = run_file.parent / "by job's $(name)"
    wrong = submit(run_file, root, cluster)
    assert wrong.exit_code == 3
    assert "wants a token" in wrong.stderr
    environment.setenv("RAY_AUTH_TOKEN", "1" * 64)
    assert "refuses the token" in submit(run_file, root, cluster).stderr

    environment.setenv("RAY_AUTH_TOKEN", TOKEN)
    first = json.loads(submit(run_file, root, cluster, "--no-wait", "--json").stdout)
    second = json.loads(submit(run_file, root, cluster, "--no-wait", "--json").stdout)
    assert (first["new"], second["new"], second["job"]) == (True, False, first["job"])
    there = Cluster.open(cluster)
    follower = started(run_file, root, cluster)
    assert follower.stderr is not None
    assert "already there for this run folder" in follower.stderr.readline()
    wait_for(there, first["job"], "RUNNING")
    there._ask("POST", f"/api/jobs/{first['job']}/stop")
    told, said = follower.communicate(timeout=_DEADLINE)
    # Ray's own client ends with 0 here.
    assert follower.returncode == 75, said
    outcome = json.loads(told)
    assert (outcome["succeeded"], outcome["status"], outcome["job"]) == (False, "STOPPED", first["job"])
    assert "the same command goes on" in said

    again = started(run_file, root, cluster)
    told, said = again.communicate(timeout=_DEADLINE)
    assert again.returncode == 0, said
    outcome = json.loads(told)
    assert outcome["job"] != first["job"]
    assert (outcome["succeeded"], outcome["done"], outcome["stages"]) == (True, 3, 3)
    assert "ray: joining auto" in said  # the log was followed
    assert (root / "report.html").is_file()

    # Another data set's run folder: the driver's own exit code comes through, and its sentence is in the log.
    elsewhere = run_file.parent / "other-data"
    elsewhere.mkdir()
    raw = raw_settings(write_vectors(elsewhere, seed=1), run={"rounds": 0, "first_epochs": 1})
    failed = submit(write_toml(run_file.parent / "other-data.toml", raw), root, cluster)
    assert failed.exit_code == 3, failed.output
    assert "another data set" in failed.stdout
    assert "exit code 3" in failed.stderr
