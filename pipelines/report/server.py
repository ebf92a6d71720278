"""The page over HTTP on 127.0.0.1, for whoever knows the token, and a file that verdicts are appended to.

    GET  /TOKEN/           the page
    GET  /TOKEN/verdicts   the file
    POST /TOKEN/verdicts   lines to append, application/jsonl

What a stranger's page in the same browser could try is refused: another name for this address (Host, against DNS that
is turned to 127.0.0.1), another origin, a form's content type, a body without length or larger than 64 KiB. Lines are
checked and written anew, several of them with one write that is synced before the answer.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from miner.artifacts.errors import BadInput
from miner.verdicts import DIRECTIONS, NOTHING, VERDICTS, lines

__all__ = ["Server", "append"]

_LARGEST = 1 << 16
_SAFE = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server(ThreadingHTTPServer):
    """Listens once it is made. Raises BadInput for a port that is taken, and a file of verdicts that is none."""

    daemon_threads = True

    def __init__(self, page: bytes, verdicts: Path, port: int = 0) -> None:
        if verdicts.exists() and verdicts.stat().st_size:
            _whole(verdicts)
        elif not verdicts.parent.is_dir():
            raise BadInput(f"{verdicts.parent}: no such folder; name a file of verdicts in one that exists.")
        self.page, self.verdicts, self.saved = page, verdicts, 0
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as taken:
            raise BadInput(
                f"port {port} of 127.0.0.1 cannot be had ({taken.strerror}); choose another --port."
            ) from taken

    @property
    def names(self) -> tuple[str, ...]:
        """What a browser on this machine may call this server."""
        return tuple(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        return f"http://{self.names[0]}/{self.token}/"


def append(path: Path, said: list[dict[str, str]]) -> None:
    """Add lines to a file of verdicts: all of them or none, on the disk when this returns, whoever else adds some."""
    data = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in said).encode()
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(28, "the disk is full", str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _whole(path: Path) -> None:
    lines(path)
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if path.suffix != ".jsonl" or file.read() != b"\n":
            raise BadInput(f"{path}: lines are added to a .jsonl file whose last line is whole; name another.")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        path = self._asked()
        if path == "":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        elif path == "verdicts":
            found = self.server.verdicts.read_bytes() if self.server.verdicts.exists() else b""
            self._answer(200, found, "application/jsonl")
        elif path is not None:
            self._refuse(404, "nothing is here")

    def do_POST(self) -> None:
        # Whatever is refused before its body was read leaves nothing to go on with.
        self.close_connection = True
        path = self._asked()
        if path is None:
            return None
        if path != "verdicts":
            return self._refuse(404, "nothing is here")
        origin = self.headers.get("Origin")
        if origin not in [f"http://{name}" for name in self.server.names] or urlsplit(origin).netloc != self._host():
            return self._refuse(403, "another origin")
        if self.headers.get_content_type() != "application/jsonl":
            return self._refuse(415, "send application/jsonl")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            return self._refuse(411, "say how long the body is")
        if int(length) > _LARGEST:
            return self._refuse(413, f"at most {_LARGEST} bytes at once")
        try:
            said = _checked(self.rfile.read(int(length)))
        except ValueError as wrong:
            return self._refuse(400, str(wrong))
        try:
            append(self.server.verdicts, said)
        except OSError as failed:
            return self._refuse(507, f"{self.server.verdicts}: {failed.strerror}")
        self.server.saved += len(said)
        return self._answer(204, b"", "text/plain")

    def _host(self) -> str:
        return self.headers.get("Host", "")

    def _asked(self) -> str | None:
        """What is asked for below the token; None, with an answer given, for who must not ask."""
        token, _, path = urlsplit(self.path).path.lstrip("/").partition("/")
        if len(self.headers.get_all("Host", [])) != 1 or self._host() not in self.server.names:
            self._refuse(421, "another host")
        elif not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403, "the token is missing or wrong: take the address that pipelines serve printed")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._refuse(403, "another origin")
        else:
            return path
        return None

    def _refuse(self, status: int, why: str) -> None:
        self._answer(status, f"{why}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_SAFE, "Content-Type": kind}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "quintain"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would hold the token."""


def _checked(body: bytes) -> list[dict[str, str]]:
    """The lines, each with the keys that a verdict has. Raises ValueError."""
    found = []
    for number, line in enumerate(filter(None, body.decode("utf-8").split("\n")), 1):
        try:
            raw = json.loads(line)
        except RecursionError:
            raw = None
        if not isinstance(raw, dict):
            raise ValueError(f"line {number} is no verdict")
        said = {name: raw.get(name) for name in ("direction", "anchor_id", "negative_id", "verdict", "at", "by")}
        kept = {name: value for name, value in said.items() if isinstance(value, str) and value}
        if kept.get("direction") not in DIRECTIONS or kept.get("verdict") not in (*VERDICTS, NOTHING):
            raise ValueError(f"line {number} is no verdict")
        if not {"anchor_id", "negative_id"} <= kept.keys():
            raise ValueError(f"line {number} does not say of what it is")
        found.append(kept)
    if not found:
        raise ValueError("no verdict")
    return found
