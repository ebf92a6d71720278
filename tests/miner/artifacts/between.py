"""A real HTTP server between a store and its server: passes on, drops headers, answers itself, breaks off."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    number: int  # of those with this method, from 1


@dataclass(frozen=True)
class Reply:
    """`after` the server has done what was asked; `cut`: only so many bytes of its body arrive."""

    status: int = 0
    code: str = ""
    after: bool = False
    cut: int | None = None


def passed(_: Request) -> Reply | None:
    return None


@dataclass
class Between:
    """`rule` says what happens to a request; None: it is passed on, without the headers in `dropped`."""

    upstream: int
    rule: Callable[[Request], Reply | None] = passed
    dropped: frozenset[str] = frozenset()
    seen: list[Request] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Between:
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _any(self) -> None:
                with lock:
                    number = 1 + sum(each.method == self.command for each in outer.seen)
                    request = Request(self.command, self.path, number)
                    outer.seen.append(request)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = outer.rule(request)
                if reply is None or reply.after or reply.cut is not None:
                    status, headers, data = outer._ask(self, body)
                if reply is not None and reply.status:
                    status, headers = reply.status, [("Content-Type", "application/xml")]
                    data = f"<Error><Code>{reply.code}</Code><Message>hunter2 in the body</Message></Error>".encode()
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                length = next((v for n, v in headers if n.lower() == "content-length"), "0")
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if reply is not None and reply.cut is not None:
                    self.wfile.write(data[: reply.cut])
                    self.close_connection = True
                    return
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _ask(self, got: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            headers = {name: value for name, value in got.headers.items() if name.lower() not in self.dropped}
            connection.request(got.command, got.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()
