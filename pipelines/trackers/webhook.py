"""A POST of JSON when a round is done or failed, and when the run is: event, run, round, metrics, message, and all of
it as one line, `text`, which chat services show.

The URL is a secret: it is read from the environment variable `variable` and never shown. Each request may take
`timeout` seconds and is tried `tries` times where trying again may help.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines.trackers import About, Event, TrackerFailed

__all__ = ["CLOSING", "Config", "connect"]

CLOSING = 30.0  # seconds
_TOLD = ("round_done", "round_failed", "run_done", "run_failed")
_AGAIN = (408, 425, 429)  # and any that is the server's own fault


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    variable: str = "QUINTAIN_WEBHOOK"
    timeout: float = Field(default=5.0, gt=0, le=60)
    tries: int = Field(default=3, ge=1, le=10)
    pause: float = Field(default=1.0, ge=0, le=60)


def connect(config: Config, about: About) -> _Webhook:
    """Raises TrackerFailed without a URL."""
    url = os.environ.get(config.variable, "").strip()
    if not url:
        raise TrackerFailed(f"{config.variable} is not set; put the URL to call there")
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        whole = False
    if not whole:
        raise TrackerFailed(f"{config.variable} holds no http:// or https:// URL")
    return _Webhook(config, url)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is told goes to who was named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Webhook:
    def __init__(self, config: Config, url: str) -> None:
        self._config, self._url = config, url
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, event: Event) -> None:
        if event.kind not in _TOLD or event.again:
            return
        body = {
            "event": event.kind,
            "run": event.run,
            "round": event.round,
            "message": event.message,
            "metrics": dict(event.figures),
            "text": _text(event),
        }
        data = json.dumps({name: value for name, value in body.items() if value not in (None, "", {})}).encode()
        wrong = ""
        for attempt in range(self._config.tries):
            if attempt:
                time.sleep(self._config.pause * 2 ** (attempt - 1))
            wrong, again = self._post(data)
            if not wrong:
                return
            if not again:
                break
        raise TrackerFailed(f"{event.kind} was not taken: {wrong}")

    def _post(self, data: bytes) -> tuple[str, bool]:
        """What went wrong, and whether trying again may help. Never an error's own text, which may hold the URL."""
        headers = {"Content-Type": "application/json", "User-Agent": "quintain"}
        try:
            asked = urllib.request.Request(self._url, data, headers, method="POST")
            with self._opener.open(asked, timeout=self._config.timeout):
                return "", False
        except urllib.error.HTTPError as refused:
            with refused:
                return f"the server answered {refused.code}", refused.code >= 500 or refused.code in _AGAIN
        except TimeoutError:
            return f"no answer in {self._config.timeout:g} s", True
        except urllib.error.URLError as failed:
            reason = failed.reason
            return (getattr(reason, "strerror", None) or type(reason).__name__), True
        except (OSError, http.client.HTTPException) as failed:
            return type(failed).__name__, True
        except ValueError:
            return "this URL cannot be called", False

    def close(self) -> None:
        pass


def _text(event: Event) -> str:
    what = {
        "round_done": f"round {event.round} is done",
        "round_failed": f"round {event.round} failed",
        "run_done": "the run is done",
        "run_failed": "the run failed",
    }[event.kind]
    rsums = [f"{split} rsum {value:.1f}" for split in ("dev", "test") if (value := event.figures.get(f"{split}/rsum"))]
    more = ", ".join(filter(None, [*rsums, event.message]))
    return f"{event.run}: {what}" + (f": {more}" if more else "")
