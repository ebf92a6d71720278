"""`pipelines report` and `pipelines serve` as a user runs them; what strangers may not do to the server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from miner.artifacts.errors import BadInput
from pipelines.cli import main
from pipelines.report.server import Server, append
from tests.pipelines.pages import Seen, browser, make_dataset, needs_browser, page_of, unpacked

LINE = {"direction": "i2t", "anchor_id": "i1", "negative_id": "t9", "verdict": "fine"}
JSONL = "application/jsonl"


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert done.exit_code == code, done.output
    return done.output


def body(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@contextlib.contextmanager
def serving(page: bytes, verdicts: Path) -> Iterator[Server]:
    with Server(page, verdicts) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(b"<!DOCTYPE html><title>page</title>", tmp_path / "verdicts.jsonl") as found:
        yield found


def asked(server: Server, method: str, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """(status, body); headers by their names with _ for -; Host, Origin and type are right unless they are given."""
    own = {"Host": server.names[0], "Origin": f"http://{server.names[0]}", "Content-Type": JSONL}
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in own.items():
            if value:
                connection.putheader(name, value)
        if data is not None and "Content-Length" not in own:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_who_knows_the_token_gets_the_page_and_saves_verdicts(server: Server) -> None:
    path = f"/{server.token}/"
    assert asked(server, "GET", path, Origin="") == (200, server.page)
    assert asked(server, "GET", f"{path}verdicts") == (200, b"")
    assert asked(server, "POST", f"{path}verdicts", body(LINE, {**LINE, "verdict": "none", "evil": 1}))[0] == 204
    assert asked(server, "POST", f"{path}verdicts", body({**LINE, "at": "now"}), Host=server.names[1],
                 Origin=f"http://{server.names[1]}")[0] == 204  # fmt: skip
    kept = [json.loads(line) for line in server.verdicts.read_text().splitlines()]
    assert kept == [LINE, {**LINE, "verdict": "none"}, {**LINE, "at": "now"}]
    assert asked(server, "GET", f"{path}verdicts")[1] == server.verdicts.read_bytes()
    assert server.saved == 3


STRANGERS: dict[str, tuple[int, dict[str, str]]] = {
    "another origin": (403, {"Origin": "http://example.com"}),
    "no origin": (403, {"Origin": ""}),
    "an origin of nowhere": (403, {"Origin": "null"}),
    "another port": (403, {"Origin": "http://127.0.0.1:1"}),
    "the other name of this host": (403, {"Origin": "http://localhost:{port}"}),
    "https": (403, {"Origin": "https://127.0.0.1:{port}"}),
    "a name that was turned to this address": (421, {"Host": "example.com:{port}", "Origin": "http://example.com:{port}"}),
    "no host": (421, {"Host": ""}),
    "a form": (415, {"Content-Type": "text/plain"}),
    "a browser that says it comes from elsewhere": (403, {"Sec-Fetch-Site": "cross-site"}),
    "no length": (411, {"Content-Length": "", "Transfer-Encoding": "chunked"}),
    "a wrong length": (411, {"Content-Length": "-1"}),
    "too much": (413, {"Content-Length": "65537"}),
}  # fmt: skip


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_refused_and_change_nothing(server: Server, who: str) -> None:
    status, headers = STRANGERS[who]
    given = {name.replace("-", "_"): value.format(port=server.server_port) for name, value in headers.items()}
    found, said = asked(server, "POST", f"/{server.token}/verdicts", body(LINE), **given)
    assert found == status
    assert server.token.encode() not in said
    assert not server.verdicts.exists()


@pytest.mark.parametrize("path", ["/", "/verdicts", "/wrong/verdicts", "//", "/{short}/verdicts", "/{token}x/verdicts"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_token_nothing_is_shown(server: Server, method: str, path: str) -> None:
    path = path.format(token=server.token, short=server.token[:-1])
    status, said = asked(server, method, path, body(LINE) if method == "POST" else None)
    assert status == 403
    assert b"page" not in said.replace(b"pipelines serve", b"")
    assert not server.verdicts.exists()


NO_VERDICTS = {
    "nothing": b"",
    "an empty line": b"\n",
    "no json": b"no json\n",
    "a list": b"[]\n",
    "very deep": b"[" * 60000,
    "no utf-8": b"\xff\n",
    "another word": body({**LINE, "verdict": "bad"}),
    "another direction": body({**LINE, "direction": "x"}),
    "no anchor": body({**LINE, "anchor_id": ""}),
    "a number": body({**LINE, "negative_id": 3}),
    "one of two": body(LINE, {**LINE, "verdict": None}),
}


@pytest.mark.parametrize("data", NO_VERDICTS.values(), ids=NO_VERDICTS)
def test_what_is_no_verdict_is_refused_whole(server: Server, data: bytes) -> None:
    assert asked(server, "POST", f"/{server.token}/verdicts", data)[0] == 400
    assert not server.verdicts.exists()


def test_other_addresses_and_methods(server: Server) -> None:
    assert asked(server, "GET", f"/{server.token}/../etc/passwd")[0] == 404
    assert asked(server, "POST", f"/{server.token}/")[0] == 404
    assert asked(server, "PUT", f"/{server.token}/verdicts", b"")[0] == 501
    assert server.server_address[0] == "127.0.0.1"


def test_lines_of_many_at_once_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    lines = [{**LINE, "anchor_id": f"{who}-{at}" * 50} for who in range(8) for at in range(25)]
    threads = [threading.Thread(target=lambda p=part: [append(path, [p[at]]) for at in range(25)])
               for part in (lines[25 * who : 25 * who + 25] for who in range(8))]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line)["anchor_id"] for line in path.read_text().splitlines()]
    assert sorted(found) == sorted(line["anchor_id"] for line in lines)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "v.jsonl"
    append(path, [LINE])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(OSError, match=r"full|large"):
            append(path, [LINE, LINE])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["no json\n", json.dumps(LINE), json.dumps(LINE)[:20]])
def test_a_file_that_cannot_be_gone_on_with_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput):
        Server(b"", path)
    assert path.read_text() == text


def test_a_page_of_a_finished_run_and_of_one_that_goes_on(copy_of: Callable[[Path], Path], finished_run: Path) -> None:
    folder = copy_of(finished_run)
    (folder / "report.html").unlink()
    assert "report.html (2." in run("report", folder)
    page = (folder / "report.html").read_text()
    assert page == (finished_run / "run" / "report.html").read_text()
    arrays, values = unpacked(page)
    assert values["looked"]
    assert values["i2t"]["rounds"] == [1, 2]
    assert "map.image" in arrays
    out = folder.parent / "small.html"
    run("report", folder, "--anchors", 5, "--out", out)
    assert len(unpacked(out.read_text())[0]["t2i.anchor"]) == 5
    shutil.rmtree(folder / "rounds" / "002" / "evaluate")
    run("report", folder, "--out", out)
    assert unpacked(out.read_text())[1]["rounds"] == [0, 1]


def test_a_page_without_the_vectors_that_gc_removed(copy_of: Callable[[Path], Path], finished_run: Path) -> None:
    folder = copy_of(finished_run)
    run("gc", folder, "--keep-rounds", "0", "--delete")
    out = folder.parent / "page.html"
    run("report", folder, "--out", out)
    arrays, values = unpacked(out.read_text())
    assert not values["looked"]
    assert "map.image" not in arrays
    low, high = values["i2t"]["suspicion"]
    found = low + arrays["i2t.suspicion"] / 65534 * (high - low)
    known = arrays["i2t.margin"] > -1e8
    np.testing.assert_allclose(found[known], arrays["i2t.margin"][known], atol=1e-3)


def test_runs_that_cannot_be_shown(tmp_path: Path, copy_of: Callable[[Path], Path], finished_run: Path) -> None:
    assert "no run here" in run("report", tmp_path, code=3)
    folder = copy_of(finished_run)
    for path in folder.glob("rounds/*/evaluate"):
        shutil.rmtree(path)
    assert "no round is finished yet" in run("report", folder, code=3)
    assert "no round is finished yet" in run("serve", folder, code=3)


def test_the_command_serves_until_it_is_interrupted(copy_of: Callable[[Path], Path], finished_run: Path) -> None:
    folder = copy_of(finished_run)
    command = [sys.executable, "-m", "pipelines", "serve", str(folder)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w-]+/)", process.stdout.readline())
        assert address
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=20)
        connection.request("GET", address[2])
        page = connection.getresponse().read().decode()
        assert "connect-src &#39;self&#39;" in page
        origin = {"Origin": f"http://127.0.0.1:{address[1]}", "Content-Type": JSONL}
        connection.request("POST", f"{address[2]}verdicts", body(LINE), origin)
        assert connection.getresponse().status == 204
        assert (folder / "verdicts.jsonl").read_bytes() == body(LINE)
        process.send_signal(signal.SIGINT)
        assert "saved 1 verdicts" in process.communicate(timeout=60)[0]
        assert process.returncode == 0
    finally:
        process.kill()


@needs_browser
def test_a_browser_saves_directly_and_finds_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    pairs = make_dataset().pairs
    with serving(page_of(served=True).encode(), path) as server, browser() as chromium:
        for expected in (0, 1):
            seen = Seen(chromium, server.url)
            status = seen.page.locator("#verdict-count")
            assert (status.text_content() == "no verdicts yet") == (expected == 0)
            if not expected:
                with seen.page.expect_response(lambda answer: answer.request.method == "POST"):
                    seen.page.locator("#detail .tile button").first.click()
            assert seen.said == []
            seen.close()
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert line["verdict"] == "false_negative"
    assert pairs.image_ids.rows([line["anchor_id"]])[0] >= 0
    assert pairs.text_ids.rows([line["negative_id"]])[0] >= 0


@needs_browser
def test_what_did_not_reach_the_server_goes_later_and_much_goes_in_parts(tmp_path: Path) -> None:
    from playwright.sync_api import expect

    path, given = tmp_path / "verdicts.jsonl", tmp_path / "given.jsonl"
    said = {"direction": "i2t", "verdict": "too_easy"}
    lines = [{**said, "anchor_id": "a" * 500, "negative_id": f"{row:0500d}"} for row in range(300)]
    given.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**lines[0], "direction": "x"}]))
    with serving(page_of(served=True).encode(), path) as server, browser() as chromium:
        seen = Seen(chromium, server.url)
        page, status = seen.page, seen.page.locator("#verdict-status")
        page.route("**/verdicts", lambda route: route.abort())
        page.locator("#detail .tile >> nth=0 >> button").nth(0).click()
        expect(status).to_contain_text("1 verdict will be sent with the next one; export all")
        assert not path.exists()
        page.unroute("**/verdicts")
        page.locator("#detail .tile >> nth=1 >> button").nth(1).click()
        expect(status).to_have_text("saved")
        page.set_input_files("#verdict-import", given)
        expect(status).to_contain_text("300 verdicts read, 1 line that is none")
        for _ in range(200):
            if server.saved == 302:
                break
            page.wait_for_timeout(50)
        seen.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["verdict"] for line in found[:2]] == ["false_negative", "fine"]
    assert [line["negative_id"] for line in found[2:]] == [line["negative_id"] for line in lines]
