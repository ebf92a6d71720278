"""A Ray cluster of several nodes on this machine, held by a process of its own, whose nodes and actors can be killed.

That process has a home, a token and a temporary folder of its own, and ends all it started when this one goes away.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE = 600


@dataclass(frozen=True)
class Actor:
    name: str
    pid: int
    node: str
    alive: bool


class Nodes:
    """`with Nodes(path) as nodes:` a head without CPUs; `path` is on the workers' Python path."""

    def __init__(self, path: Path) -> None:
        # Ray's sockets want a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
        self.environment = {
            **os.environ, "HOME": str(self.folder), "RAY_TMPDIR": str(self.folder), "PYTHONPATH": f"{ROOT}:{path}",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # A dead node is noticed in seconds; with Ray's own settings it takes about fifteen.
            "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "6",
            "RAY_raylet_start_wait_time_s": "120",
        }  # fmt: skip

    def __enter__(self) -> Nodes:
        self._log = open(self.folder / "nodes.log", "wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.nodes"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        self.address = str(self._ask("head")["address"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            for left in self._own():
                kill(left)
            self._log.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus: int = 1, gpus: int = 0) -> tuple[str, int]:
        """(id of a new node, pid of its raylet)."""
        found = self._ask("add", cpus=cpus, gpus=gpus)
        return found["node"], found["raylet"]

    def actors(self, name: str = "") -> list[Actor]:
        """Every actor ever whose name has this in it."""
        return [Actor(**each) for each in self._ask("actors")["actors"] if name in each["name"]]

    def working(self, title: str) -> list[int]:
        """Processes on this cluster that are at work under this name."""
        return self.titled(f"ray::{title}\0")

    def titled(self, start: str) -> list[int]:
        """Processes on this cluster whose title begins so."""
        return [pid for pid in self._own() if _read(f"/proc/{pid}/cmdline").startswith(start.encode())]

    def workers(self) -> list[int]:
        """Processes on this cluster that are at work for some run: its actors, Ray Train's, tasks."""
        titles = {pid: _read(f"/proc/{pid}/cmdline") for pid in self._own()}
        idle = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
        return [pid for pid, title in titles.items() if title.startswith(b"ray::") and not title.startswith(idle)]

    def run(self, run_file: Path, root: Path, *options: str) -> subprocess.Popen[bytes]:
        """`pipelines run` as a process; what it says is added to the file beside `root`, named as `said` reads it."""
        command = [sys.executable, "-m", "pipelines", "run", str(run_file), "--run-dir", str(root)]
        command += ["--executor", "ray", "--address", self.address, *options]
        with open(root.parent / f"{root.name}.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, cwd=root.parent)

    def _own(self) -> list[int]:
        """Processes that were started with this cluster's home, Ray's and the drivers'."""
        mark = f"HOME={self.folder}\0".encode()
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in found if mark in _read(f"/proc/{pid}/environ")]

    def _ask(self, what: str, **about: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"what": what, **about}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, (self.folder / "nodes.log").read_text()[-4000:]
        found: dict[str, Any] = json.loads(answer)
        return found


def said(root: Path) -> str:
    return (root.parent / f"{root.name}.log").read_text()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes], root: Path) -> None:
    """Wait for what a run in `root` is to bring about."""
    end = time.monotonic() + DEADLINE
    while not true():
        assert process.poll() is None, said(root)
        assert time.monotonic() < end, said(root)
        time.sleep(0.05)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it is gone, or not ours
        return b""


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import ray
    from ray._private.state import actors
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(True, head_node_args={**size, "num_cpus": 0, "include_dashboard": False}, shutdown_at_exit=False)
    try:
        ray.init(address=cluster.address, log_to_driver=False, namespace="watching")
        for line in sys.stdin:
            about = json.loads(line)
            if about["what"] == "head":
                told: dict[str, Any] = {"address": cluster.address}
            elif about["what"] == "add":
                node = cluster.add_node(num_cpus=about["cpus"], num_gpus=about["gpus"], **size)
                told = {"node": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}
            else:
                told = {
                    "actors": [
                        {"name": each["Name"], "pid": each["Pid"], "node": each["Address"]["NodeID"],
                         "alive": each["State"] == "ALIVE"}
                        for each in actors().values()
                    ]
                }  # fmt: skip
            print(json.dumps(told), file=answers, flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    _serve()
