"""`pipelines submit`: what it makes of every way a job can end, and of what answers in place of a cluster."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from miner.artifacts.store import LocalStore
from pipelines.cli import main
from pipelines.commands.submit import _outcome
from pipelines.ray_jobs import Cluster, token
from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings, write_toml

TOKEN = "0" * 64


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    raw = raw_settings(folder, run={"rounds": 0, "first_epochs": 1}, executor={"kind": "inline"})
    return write_toml(tmp_path_factory.mktemp("submit") / "it's run.toml", raw)


@pytest.fixture(scope="module")
def done(run_file: Path) -> Path:
    """A run folder in which every stage is committed."""
    root = run_file.parent / "done"
    assert CliRunner().invoke(main, ["run", str(run_file), "--run-dir", str(root)]).exit_code == 0
    return root


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


# How a job ended and what the folder holds -> exit code, and a word of the sentence.
ENDS = [
    ("SUCCEEDED", 0, True, 0, "all 3 stages"),
    ("STOPPED", None, True, 0, "all 3 stages are committed"),
    ("FAILED", 1, True, 0, "all 3 stages"),
    ("SUCCEEDED", 0, False, 3, "mount"),
    ("STOPPED", None, False, 75, "stopped"),
    ("STOPPED", 0, False, 75, "stopped"),
    ("FAILED", None, False, 75, "lost"),
    ("FAILED", -9, False, 75, "lost"),
    ("FAILED", 137, False, 75, "lost"),
    ("FAILED", 1, False, 1, "crashed"),
    *(("FAILED", code, False, code, f"exit code {code}") for code in (2, 3, 4, 5, 75)),
]


@pytest.mark.parametrize(("status", "driver", "all_done", "code", "said"), ENDS)
def test_the_manifests_decide(
    run_file: Path, done: Path, tmp_path: Path, status: str, driver: int | None, all_done: bool, code: int, said: str
) -> None:
    root = done if all_done else tmp_path / "nothing"
    found = _outcome({"status": status, "driver_exit_code": driver}, Settings.load(run_file), LocalStore(root))
    assert (found["succeeded"], found["exit_code"]) == (code == 0, code)
    assert said in found["why"]
    assert (found["done"], found["stages"]) == ((3, 3) if all_done else (0, 0))


@pytest.mark.parametrize(("status", "code", "wanted"), [("STOPPED", None, 75), ("FAILED", 75, 75), ("FAILED", 5, 5)])
def test_data_that_the_cluster_alone_has(
    done: Path, run_file: Path, tmp_path: Path, status: str, code: int | None, wanted: int
) -> None:
    raw = raw_settings(tmp_path / "on-the-cluster", run={"rounds": 0, "first_epochs": 1}, executor={"kind": "inline"})
    settings = Settings.load(write_toml(tmp_path / "run.toml", raw))
    found = _outcome({"status": status, "driver_exit_code": code}, settings, LocalStore(done))
    assert (found["succeeded"], found["exit_code"]) == (False, wanted)
    assert "is not known without the data, which is not here" in found["why"]


def test_a_folder_of_other_settings_is_no_success(done: Path, run_file: Path, folder: Path) -> None:
    raw = raw_settings(folder, run={"rounds": 0, "first_epochs": 2}, executor={"kind": "inline"})
    other = Settings.load(write_toml(run_file.parent / "other.toml", raw))
    found = _outcome({"status": "SUCCEEDED", "driver_exit_code": 0}, other, LocalStore(done))
    assert (found["succeeded"], found["exit_code"], found["done"]) == (False, 3, 0)
    assert "another run file" in found["why"]


def test_a_damaged_folder_is_no_success(done: Path, run_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(done), str(root)], check=True)
    manifest = next(root.glob("rounds/000/fit/*/manifest.json"))
    manifest.write_text(manifest.read_text()[:-9])
    found = _outcome({"status": "SUCCEEDED", "driver_exit_code": 0}, Settings.load(run_file), LocalStore(root))
    assert (found["succeeded"], found["exit_code"]) == (False, 4)


class Dashboard:
    """Something that answers HTTP as a test wants it: path -> (status, body)."""

    def __init__(self, answers: dict[str, tuple[int, Any]]) -> None:
        outer = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body = answers.get(self.path, (404, "no such page"))
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextlib.contextmanager
def dashboard(answers: dict[str, tuple[int, Any]]) -> Iterator[Dashboard]:
    made = Dashboard(answers)
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()
        thread.join()


def submit(run_file: Path, root: Path, address: str, *options: str) -> Any:
    return CliRunner().invoke(
        main, ["submit", str(run_file), "--run-dir", str(root), "--address", address, "--every", "0.2", *options]
    )


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ((200, "<html>hello</html>"), 3, "no Ray dashboard"),
        ((200, {"version": 1}), 3, "no Ray dashboard"),
        ((404, "nothing"), 3, "no Ray dashboard"),
        ((302, ""), 3, "no Ray dashboard"),
        ((401, "Unauthorized"), 3, "RAY_AUTH_TOKEN"),
        ((403, "Forbidden"), 3, "RAY_AUTH_TOKEN"),
        ((500, "Traceback\nBoom"), 75, "HTTP 500: Boom"),
    ],
)
def test_what_is_no_dashboard_is_told(
    environment: pytest.MonkeyPatch, run_file: Path, answer: tuple[int, Any], code: int, said: str
) -> None:
    with dashboard({"/api/version": answer}) as found:
        result = submit(run_file, run_file.parent / "never", found.url)
        assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.stderr
        assert said in result.stderr
        # A redirect is not followed, with the token or without.
        assert found.asked == ["/api/version"]
    assert not (run_file.parent / "never").exists()


def test_looking_can_end_while_the_job_goes_on(environment: pytest.MonkeyPatch, run_file: Path) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    environment.setattr(Cluster, "submit", lambda *_: ("quintain-1", True))
    environment.setattr(Cluster, "job", interrupted)
    with dashboard({"/api/version": (200, {"ray_version": "2.60.0"})}) as found:
        result = submit(run_file, run_file.parent / "never", found.url)
    assert result.exit_code == 75
    assert "job quintain-1 goes on" in result.stderr


def test_nobody_there(environment: pytest.MonkeyPatch, run_file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        result = submit(run_file, run_file.parent / "never", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert (result.exit_code, len(result.stderr.splitlines())) == (75, 1)
    assert "is the cluster up" in result.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://head:10001", "auto", "http://", "http://me:pw@head:8265"])
def test_an_address_of_another_kind(environment: pytest.MonkeyPatch, run_file: Path, address: str) -> None:
    result = submit(run_file, run_file.parent / "never", address)
    assert result.exit_code == 3
    assert "http://HOST:8265" in result.stderr


def test_a_run_folder_that_this_machine_does_not_see(environment: pytest.MonkeyPatch, run_file: Path) -> None:
    result = submit(run_file, Path("/not/mounted/runs"), "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "mount" in result.stderr


def test_a_run_folder_without_a_name_is_not_the_current_one(run_file: Path) -> None:
    done = CliRunner().invoke(main, ["submit", str(run_file), "--run-dir", ""])
    assert (done.exit_code, "'' is no folder" in done.output) == (3, True)


def test_the_token_is_where_ray_looks_for_it(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("default\n")
    assert token() == "default"
    (tmp_path / "mine").write_text("mine\n")
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    assert token() == "mine"
    environment.setenv("RAY_AUTH_TOKEN", "named")
    assert token() == "named"
    environment.delenv("RAY_AUTH_TOKEN")
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH"):
        token()


def test_a_token_in_plain_text_is_warned_of(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RAY_AUTH_TOKEN", TOKEN)
    environment.setattr(Cluster, "_ask", lambda *_, **__: {"ray_version": "2.60.0"})
    with pytest.warns(UserWarning, match="plain text"):
        Cluster.open("http://head.example:8265")
