"""As much of Google Cloud Storage's XML API as `ObjectStore` uses, on a real socket.

No package that installs from PyPI serves that API (gcp-storage-emulator has the JSON API, without XML listing, HEAD or
preconditions on PUT). So this shows that the code path for `gs://` runs and asks for the condition; what Google's
servers do it cannot show.
"""

from __future__ import annotations

import hashlib
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class GcsStandIn:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            gcs = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def listing(self, bucket: str, prefix: str, delimiter: str, after: str, most: int) -> str:
        with self.lock:
            names = sorted(name.partition("/")[2] for name in self.objects if name.startswith(f"{bucket}/"))
        entries: dict[str, str] = {}
        for name in names:
            if not name.startswith(prefix):
                continue
            below, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            key = prefix + below + delimiter if found else name
            data = self.objects.get(f"{bucket}/{name}", b"")
            entries[key] = (
                f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>"
                if found
                else f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{_etag(data)}</ETag><Size>{len(data)}</Size></Contents>"
            )
        left = [key for key in sorted(entries) if key > after]
        page, more = left[:most], len(left) > most
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        body = "".join(entries[key] for key in page)
        return f"<ListBucketResult>{body}<IsTruncated>{str(more).lower()}</IsTruncated>{token}</ListBucketResult>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gcs: GcsStandIn

    def log_message(self, *_: object) -> None:
        pass

    def _split(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        return unquote(parts.path)[1:], {name: values[0] for name, values in query.items()}

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self) -> None:
        self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self) -> None:
        name, query = self._split()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.gcs.lock:
            if "uploadId" in query:
                self.gcs.uploads[query["uploadId"]][int(query["partNumber"])] = data
            elif self.headers.get("x-goog-if-generation-match") == "0" and name in self.gcs.objects:
                return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            else:
                self.gcs.objects[name] = data
        return self._answer(200, b"", {"ETag": _etag(data), "x-goog-generation": "1"})

    def do_POST(self) -> None:
        name, query = self._split()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "uploads" in query:
            upload = f"u{len(self.gcs.uploads)}"
            self.gcs.uploads[upload] = {}
            body = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return self._answer(200, body.encode())
        with self.gcs.lock:
            parts = self.gcs.uploads.pop(query["uploadId"])
            data = self.gcs.objects[name] = b"".join(parts[number] for number in sorted(parts))
        body = f"<CompleteMultipartUploadResult><ETag>{_etag(data)}</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, body.encode(), {"x-goog-generation": "1"})

    def do_GET(self) -> None:
        name, query = self._split()
        if "list-type" in query:
            after = query.get("continuation-token", "")
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
            listing = self.gcs.listing(name.partition("/")[0], prefix, delimiter, after, 1000)
            return self._answer(200, listing.encode())
        data = self.gcs.objects.get(name)
        if data is None:
            return self._missing()
        headers = {"ETag": _etag(data), "Last-Modified": formatdate(0, usegmt=True), "x-goog-generation": "1"}
        if self.headers.get("If-Match", _etag(data)) != _etag(data):
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        if self.command == "HEAD":
            return self._answer(200, b"", {**headers, "Content-Length": str(len(data))})
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            piece = data[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
            return self._answer(206, piece, headers)
        return self._answer(200, data, headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        name, _ = self._split()
        with self.gcs.lock:
            found = self.gcs.objects.pop(name, None)
        return self._missing() if found is None else self._answer(204)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
