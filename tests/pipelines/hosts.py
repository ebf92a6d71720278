"""Two hosts on this machine: network namespaces with addresses of their own, joined by a link that can be cut.

On the first are a Ray head without CPUs, an S3 server and the driver; on the second a Ray node that does the work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.pipelines.buckets import SECRET
from tests.pipelines.nodes import ROOT, kill

_S3, _RAY = 5555, 6399
_PATIENCE = 300
# What a cluster needs whose links may be down for some minutes. A node that does not answer is not given up (by
# default after about half a minute), and a node and its workers wait for a head that does not (by default a minute).
RAY_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "5000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "30",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_grpc_client_keepalive_time_ms": "300000",
    "RAY_grpc_client_keepalive_timeout_ms": "300000",
    "RAY_grpc_keepalive_time_ms": "300000",
    "RAY_grpc_keepalive_timeout_ms": "300000",
}


def refusal() -> str:
    """Why there can be no namespaces here; empty where there can be."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    name = f"quintain-{os.getpid()}"
    link = ["ip", "-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two"]
    try:
        for command in (["ip", "netns", "add", name], link):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                return f"network namespaces and links between them cannot be made here: {made.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return ""


class Hosts:
    """`with Hosts() as hosts:`; ends what it started."""

    def __init__(self, settings: dict[str, str] = RAY_SETTINGS) -> None:
        number = os.getpid()
        self.names = (f"quintain-a{number}", f"quintain-b{number}")
        self.links = (f"qa{number}", f"qb{number}")
        self.addresses = ("10.77.0.1", "10.77.0.2")
        self.folder = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))  # Ray's sockets want a short path
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_")) and not name.lower().endswith("_proxy")
        } | {
            "HOME": str(self.folder), "RAY_TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "QUINTAIN_CACHE": str(self.folder / "cache"),
            "AWS_ENDPOINT_URL": f"http://{self.addresses[0]}:{_S3}", "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0", **settings,
        }  # fmt: skip
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            self._join()
            self.start(0, "-m", "tests.pipelines.hosts", self.addresses[0], str(_S3))
            self.until(lambda: self.inside(0, f"import urllib.request as u; u.urlopen({self.endpoint!r})") == 0)
            size = ["--object-store-memory", str(80 * 2**20), "--block"]
            self.start(0, *_RAY_START, "--head", f"--port={_RAY}", f"--node-ip-address={self.addresses[0]}",
                       "--num-cpus=0", "--include-dashboard=false", *size)  # fmt: skip
            self.until(lambda: "Ray runtime started" in self.log)
            self.start(1, *_RAY_START, f"--address={self.cluster}", f"--node-ip-address={self.addresses[1]}",
                       "--num-cpus=2", *size)  # fmt: skip
            self.until(lambda: self.log.count("Ray runtime started") == 2)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                kill(int(pid))
        for process in self._processes:
            process.wait(60)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def endpoint(self) -> str:
        return f"http://{self.addresses[0]}:{_S3}"

    @property
    def cluster(self) -> str:
        return f"{self.addresses[0]}:{_RAY}"

    @property
    def log(self) -> str:
        return (self.folder / "hosts.log").read_text(errors="replace")

    def link(self, state: str) -> None:
        """Set the link of the second host "up" or "down"."""
        self._ip("-n", self.names[1], "link", "set", self.links[1], state)

    def inside(self, host: int, code: str) -> int:
        """The exit code of some Python there."""
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-c", code]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode

    def start(self, host: int, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Python with these arguments there."""
        command = ["ip", "netns", "exec", self.names[host], sys.executable, *arguments]
        with open(log or self.folder / "hosts.log", "ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self.environment, cwd=ROOT)
        self._processes.append(process)
        return process

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + _PATIENCE
        while not true():
            assert time.monotonic() < end, self.log[-4000:]
            time.sleep(0.2)

    def _join(self) -> None:
        for name in self.names:
            self._ip("netns", "add", name)
        a, b = self.links
        self._ip("link", "add", a, "netns", self.names[0], "type", "veth", "peer", "name", b, "netns", self.names[1])
        for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            for each in (link, "lo"):
                self._ip("-n", name, "link", "set", each, "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


_RAY_START = ("-m", "ray.scripts.scripts", "start")


def _serve(address: str, port: int) -> None:
    """An S3 server that takes one PUT at a time, as the fixture `moto` does."""
    import threading

    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_object(self: object, *arguments: object) -> object:
        with one_at_a_time:
            return put(self, *arguments)

    S3Response.put_object = put_object
    server = ThreadedMotoServer(address, port, verbose=False)
    server.start()
    urllib.request.urlopen(urllib.request.Request(f"http://{address}:{port}/runs", method="PUT")).close()
    threading.Event().wait()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
