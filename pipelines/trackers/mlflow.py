"""MLflow (`pip install 'quintain[mlflow]'`): one run per run folder, found again after a kill, with figures by epoch
and by round and the settings as tags.

`uri`: of a tracking server [default: MLFLOW_TRACKING_URI]; `experiment`. Credentials are MLflow's own variables.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.trackers import About, Event, TrackerFailed
from pipelines.trackers._scalars import scalars

__all__ = ["APART", "CLOSING", "Config", "connect"]

APART = True
CLOSING = 15.0  # seconds
_TAG = "quintain.run"


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(default="", repr=False)
    experiment: str = "quintain"

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        address = urlsplit(uri)
        if address.username or address.password or address.query:
            raise ValueError("it holds credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri


def connect(config: Config, about: About) -> _MLflow:
    """Raises TrackerFailed without MLflow or a server, and what MLflow raises."""
    if not (config.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise TrackerFailed("no server is named; write mlflow:uri=http://HOST:5000, or set MLFLOW_TRACKING_URI")
    # MLflow's own are minutes for one request.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow import MlflowClient
    except ImportError as missing:
        raise TrackerFailed("MLflow is not installed: pip install 'quintain[mlflow]'") from missing
    client = MlflowClient(tracking_uri=config.uri or None)
    found = client.get_experiment_by_name(config.experiment)
    experiment = client.create_experiment(config.experiment) if found is None else found.experiment_id
    ours = hashlib.sha256(about.run.encode()).hexdigest()[:16]
    runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{ours}'", max_results=1)
    run = runs[0] if runs else client.create_run(experiment, tags={_TAG: ours}, run_name=about.run)
    client.update_run(run.info.run_id, status="RUNNING")
    for name, value in about.settings.items():
        client.set_tag(run.info.run_id, name, value[:5000])  # a tag may be set anew where settings changed
    return _MLflow(client, run.info.run_id)


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def __call__(self, event: Event) -> None:
        from mlflow.entities import Metric

        told = scalars(event)
        if told is not None:
            at = int(1000 * event.time)
            self._client.log_batch(
                self._run, [Metric(name, value, at, told.step) for name, value in told.values.items()]
            )
        if event.kind in ("run_done", "run_failed"):
            self._client.set_terminated(self._run, "FINISHED" if event.kind == "run_done" else "FAILED")

    def close(self) -> None:
        pass
