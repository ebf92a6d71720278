"""Ray's Jobs API over HTTP, as its dashboard answers it. No ray here: the API is documented, and a client machine needs
neither Ray nor its version.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.locations import shown

__all__ = ["Cluster", "token"]

_PATIENCE = 60.0  # seconds without an answer, once there was one
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Refused(Retryable):
    """An answer that is not 200; `text` is what it says."""

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(f"{url}: the Jobs API answers HTTP {status}: {_last(text)}")
        self.text = text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to who was named, and to nobody that one names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def token() -> str:
    """The cluster's token, from where Ray itself looks for it; "" for none. Raises BadInput for a missing file."""
    said = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if said:
        return said
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as gone:
        if named:
            raise BadInput(f"{named}: RAY_AUTH_TOKEN_PATH names this file, and it cannot be read.") from gone
        return ""


@dataclass(frozen=True)
class Cluster:
    """Jobs of the Ray cluster whose dashboard is at `url`."""

    url: str
    token: str

    @classmethod
    def open(cls, address: str) -> Cluster:
        """Raises BadInput for an address or a token that is wrong, Retryable when nobody answers."""
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise BadInput(
                f"--address {shown(address)}: give the dashboard's URL, http://HOST:8265; HOST:6379 is for "
                "`pipelines run`."
            )
        found = cls(address.rstrip("/"), token())
        if found.token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            warnings.warn(
                f"--address {address}: the token goes over the network in plain text; "
                "better https, or ssh -L 8265:127.0.0.1:8265 HOST and http://127.0.0.1:8265.",
                stacklevel=2,
            )
        version = found._ask("GET", "/api/version", patience=0)
        if "ray_version" not in version:
            raise BadInput(f"{address}: what answers there is no Ray dashboard.")
        return found

    def submit(self, command: list[str], run_dir: str) -> tuple[str, bool]:
        """The id of the job for a run folder, and whether it is new: one that has not ended is not doubled."""
        prefix = f"quintain-{hashlib.sha256(run_dir.encode()).hexdigest()[:12]}-"
        body = {"entrypoint": shlex.join(command), "metadata": {"quintain_run_dir": run_dir}}
        for _ in range(10):
            jobs = {job["submission_id"]: job for job in self._ask("GET", "/api/jobs/") if job.get("submission_id")}
            tries = {int(name.rpartition("-")[2]): job for name, job in jobs.items() if name.startswith(prefix)}
            last = max(tries, default=0)
            if last and tries[last]["status"] not in _ENDED:
                return f"{prefix}{last}", False
            try:
                # Two who submit at once choose the same id, and Ray takes it once.
                found = self._ask("POST", "/api/jobs/", {**body, "submission_id": f"{prefix}{last + 1}"}, patience=0)
                return str(found["submission_id"]), True
            except _Refused as refused:
                if "already exists" not in refused.text:
                    raise
        raise Retryable(f"{self.url}: others keep submitting jobs for {run_dir}; run the same command again.")

    def job(self, name: str) -> dict[str, Any]:
        """Status and exit code of a job. Raises Retryable when it is gone."""
        try:
            found: dict[str, Any] = self._ask("GET", f"/api/jobs/{name}")
            return found
        except _Refused as gone:
            raise Retryable(f"{self.url}: job {name} is gone ({_last(gone.text)}); submit again to go on.") from gone

    def log(self, name: str) -> str:
        """What a job has printed; "" while there is nothing."""
        try:
            return str(self._ask("GET", f"/api/jobs/{name}/logs").get("logs") or "")
        except _Refused:
            return ""  # its node has not answered yet, or is gone with its log

    def _ask(self, method: str, path: str, body: Any = None, *, patience: float = _PATIENCE) -> Any:
        """The answer as JSON. Raises _Refused, BadInput for the wrong token, Retryable when nobody answers."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        local = urllib.parse.urlsplit(self.url).hostname in _LOOPBACK
        opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))
        end = time.monotonic() + patience
        while True:
            try:
                with opener.open(asked, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as refused:
                text = refused.read().decode(errors="replace")
                if refused.code in (401, 403):
                    raise BadInput(f"{self.url}: {self._about_token(refused.code)}") from refused
                if path == "/api/version" and refused.code < 500:
                    raise BadInput(f"{self.url}: what answers there is no Ray dashboard with a Jobs API.") from refused
                raise _Refused(self.url, refused.code, text) from refused
            except (OSError, http.client.HTTPException) as failed:
                if time.monotonic() >= end:
                    reason = getattr(failed, "reason", None) or failed
                    raise Retryable(
                        f"{self.url}: no Ray dashboard answers ({reason}); is the cluster up, and a tunnel to it?"
                    ) from failed
            except ValueError as other:
                raise BadInput(f"{self.url}: what answers there is no Ray dashboard.") from other
            time.sleep(min(2.0, max(0.0, end - time.monotonic())))

    def _about_token(self, status: int) -> str:
        if not self.token:
            return "the cluster wants a token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it."
        return f"the cluster refuses the token (HTTP {status}); set RAY_AUTH_TOKEN to that of this cluster."


def _last(text: str) -> str:
    """The last line of what may be a traceback."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no reason given"
