"""In the pod of a CronJob: make the RayJob of this scheduled time, or find it made, and wait until it has ended.

    python -m pipelines.schedules._create rayjob.yaml

Exit codes: 0 it succeeded, 1 it failed, 3 the API server refuses it, 75 the API server cannot be asked or the RayJob is
gone. Needs of Python packages only yaml, which Ray brings; talks to the API server with the pod's own account.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Api", "follow", "main"]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_KIND = "apis/ray.io/v1/namespaces/{}/rayjobs"


@dataclass(frozen=True)
class Api:
    """The API server at `url`, asked with the token in `account`."""

    url: str
    account: Path

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """HTTP status and answer. Raises OSError when there is none."""
        token = (self.account / "token").read_text().strip()  # read each time: it is renewed
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        authority = self.account / "ca.crt"
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(authority))))
        try:
            with urllib.request.build_opener(*handlers).open(asked, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            text = refused.read().decode(errors="replace")
            try:
                found = json.loads(text)
            except ValueError:
                found = None
            return refused.code, found if isinstance(found, dict) else {"message": text[:500]}


def follow(
    api: Api, rayjob: Mapping[str, Any], about: Mapping[str, str], *, every: float = 15, patience: float = 600
) -> int:
    """Make `rayjob` under the name of the Job that this pod belongs to, and wait; the exit code.

    The name holds the scheduled time, so there is one RayJob per time, whoever asks for it and however often. It
    belongs to the Job: when that is deleted, so is the RayJob.
    """
    name, folder = about["JOB_NAME"], _KIND.format(about["NAMESPACE"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": about["JOB_UID"]}
    body = {**rayjob, "metadata": {**rayjob["metadata"], "name": name, "ownerReferences": [owner]}}
    last = time.monotonic()
    made, said = False, ""
    while True:
        try:
            # Strict: an operator too old to know a field, that of the token say, is told rather than ignored.
            if made:
                status, answer = api.ask("GET", f"{folder}/{name}")
            else:
                status, answer = api.ask("POST", f"{folder}?fieldValidation=Strict", body)
        except OSError as failed:
            status, answer = 0, {"message": str(failed)}
        if not made and status in (200, 201, 409):
            made, last = True, time.monotonic()
            _say(f"RayJob {name}: " + ("already made, waiting for it" if status == 409 else "made, waiting for it"))
            continue
        if status == 200:
            last = time.monotonic()
            state = answer.get("status") or {}
            shown = f"{state.get('jobDeploymentStatus') or 'new'} {state.get('jobStatus') or ''}".strip()
            if shown != said:
                said = shown
                _say(f"RayJob {name}: {shown} {state.get('message') or ''}".rstrip())
            if state.get("jobDeploymentStatus") in ("Complete", "Failed"):
                return 0 if (state["jobDeploymentStatus"], state.get("jobStatus")) == ("Complete", "SUCCEEDED") else 1
        elif made and status == 404:
            _say(f"RayJob {name} is gone: somebody deleted it.")
            return 75
        elif 400 <= status < 500 and status not in (408, 429):
            _say(f"the API server refuses the RayJob (HTTP {status}): {answer.get('message')}")
            return 3
        elif time.monotonic() - last > patience:
            _say(f"the API server has not answered for {patience:.0f} s ({answer.get('message') or status}).")
            return 75
        time.sleep(every)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str]) -> int:
    import yaml

    needed = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "JOB_NAME", "JOB_UID", "NAMESPACE")
    unset = [name for name in needed if not os.environ.get(name)]
    if unset:
        _say(
            f"{unset[0]} is not set: this runs in the pod of a CronJob, as `pipelines schedule kubernetes` renders it."
        )
        return 3
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    rayjob = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    return follow(Api(f"https://{host}:{port}", _ACCOUNT), rayjob, os.environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
