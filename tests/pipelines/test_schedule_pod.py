"""The program in the CronJob's pod, which makes the RayJob of a scheduled time, against an API server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.schedules import _create

RAYJOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"labels": {"a": "b"}},
    "spec": {"entrypoint": "pipelines run /data/run.toml"},
}


class Server:
    """As much of an API server as the pod asks: RayJobs that end after a number of looks."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.answers: list[tuple[int, str, str]] = []  # what comes of the next looks: HTTP status, state, job's status
        self.refuse: list[int] = []  # HTTP statuses before anything else
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _say(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _seen(self) -> bool:
                outer.asked.append((self.command, self.path, self.headers["Authorization"]))
                if outer.refuse:
                    self._say(outer.refuse.pop(0), {"message": "not now"})
                    return True
                return False

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._seen():
                    return
                name = body["metadata"]["name"]
                if name in outer.made:
                    self._say(409, {"reason": "AlreadyExists"})
                else:
                    outer.made[name] = body
                    self._say(201, body)

            def do_GET(self) -> None:
                if self._seen():
                    return
                status, state, job = outer.answers.pop(0)
                body = {"status": {"jobDeploymentStatus": state, "jobStatus": job}} if state else {}
                self._say(status, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


ABOUT = {"JOB_NAME": "quintain-29400000", "JOB_UID": "u-1", "NAMESPACE": "team"}


def follow(server: Server, folder: Path, patience: float = 600) -> int:
    (folder / "token").write_text("pod-token\n")
    return _create.follow(_create.Api(server.url, folder), RAYJOB, ABOUT, every=0.01, patience=patience)


def test_the_pod_makes_the_rayjob_of_its_time_and_waits(server: Server, tmp_path: Path) -> None:
    server.refuse = [503]
    server.answers = [(200, "", ""), (200, "Initializing", ""), (200, "Running", "RUNNING"), (500, "", ""),
                      (200, "Complete", "SUCCEEDED")]  # fmt: skip
    assert follow(server, tmp_path) == 0
    (made,) = server.made.values()
    assert made["metadata"]["name"] == "quintain-29400000"
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "quintain-29400000", "uid": "u-1"}
    ]
    assert made["spec"] == RAYJOB["spec"]
    folder = "/apis/ray.io/v1/namespaces/team/rayjobs"
    assert {path for _, path, _ in server.asked} == {f"{folder}?fieldValidation=Strict", f"{folder}/quintain-29400000"}
    assert {token for _, _, token in server.asked} == {"Bearer pod-token"}


def test_a_second_pod_waits_for_the_same_rayjob(server: Server, tmp_path: Path) -> None:
    server.answers = [(200, "Complete", "SUCCEEDED"), (200, "Complete", "SUCCEEDED")]
    assert (follow(server, tmp_path), follow(server, tmp_path)) == (0, 0)
    assert len(server.made) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, "Failed", "FAILED"), 1),
        ((200, "Complete", "FAILED"), 1),
        ((200, "Complete", "STOPPED"), 1),
        ((404, "", ""), 75),
        ((403, "", ""), 3),
    ],
)
def test_how_a_rayjob_ended_is_the_pods_exit_code(
    server: Server, tmp_path: Path, answer: tuple[int, str, str], code: int
) -> None:
    server.answers = [(200, "Running", "RUNNING"), answer]
    assert follow(server, tmp_path) == code


def test_the_pod_is_told_why_the_api_server_refuses(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuse = [400]  # an operator that does not know authOptions
    assert follow(server, tmp_path) == 3
    assert "HTTP 400): not now" in capsys.readouterr().out
    server.http.server_close()
    server.http.shutdown()
    assert follow(server, tmp_path, patience=0.1) == 75


def test_outside_a_pod_it_says_so_and_is_light() -> None:
    code = (
        "import sys\nfrom pipelines.schedules._create import main\nended = main(['rayjob.yaml'])\n"
        "print(ended, sorted({'torch', 'ray', 'jinja2', 'pydantic', 'numpy', 'click'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}).stdout
    assert "KUBERNETES_SERVICE_HOST is not set" in shown
    assert shown.splitlines()[-1] == "3 []"
