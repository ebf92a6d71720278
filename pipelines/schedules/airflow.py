"""An Airflow DAG with one task, tried again only when that can help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.schedules import Job
from pipelines.schedules._words import fill

__all__ = ["PLACE", "SUFFIX", "Config", "command", "render"]

SUFFIX = ".py"
PLACE: Literal["machine"] = "machine"


@dataclass(frozen=True)
class Config:
    """`address` of a Ray cluster to join; without, a local one of `workers` (0: one per core) for each run."""

    address: str = ""
    workers: int = 0


_TEMPLATE = '''\
"""quintain: the loop of hard-negative mining. Rendered by `pipelines schedule airflow`, for Airflow 3.

Install   put this file into the DAGs folder. `pipelines` must be in the PATH of the Airflow workers, and the paths in
          COMMAND must be the same on all of them.
Change    retries, execution_timeout, queue or pool; times are UTC.
Secrets   RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file) and credentials of an object store come from the environment
          of the Airflow workers, which their own Secret or environment file fills: never from this text.
Again     The command resumes: what is done is not done again. One run at a time, and missed ones are not caught up.
Codes     75 (try again) and a killed command are retried; 2 wrong usage, 3 bad input, 4 damaged artifact and 5 another
          writer fail at once, for trying again does not help.
"""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta, timezone

from airflow.sdk import dag, task

try:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:  # Airflow 3.0 and 3.1
    from airflow.exceptions import AirflowException, AirflowFailException

# A list of arguments: no shell and no template ever reads it.
COMMAND = [
{% for word in command %}
    {{ word }},
{% endfor %}
]
FINAL = {2: "wrong usage", 3: "bad input", 4: "damaged artifact", 5: "another command writes in the run folder"}


@dag(
    dag_id={{ name }},
    schedule={{ at }},
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["quintain"],
)
def quintain():
    @task(retries=3, retry_delay=timedelta(minutes=5), execution_timeout=timedelta(days=1))
    def run():
        if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            raise AirflowFailException("RAY_AUTH_TOKEN is not in the environment of this Airflow worker")
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        code = subprocess.run(COMMAND, env=environment, check=False).returncode
        if code in FINAL:
            raise AirflowFailException(f"exit code {code}, {FINAL[code]}: see the log; trying again does not help")
        if code:
            raise AirflowException(f"exit code {code}: the next try goes on where this one stopped")

    run()


quintain()
'''


def command(job: Job, config: Config) -> list[str]:
    return job.run(address=config.address, workers=config.workers)


def render(job: Job, config: Config) -> str:
    words = [ascii(word) for word in command(job, config)]
    return fill(_TEMPLATE, name=ascii(job.name), at=ascii(str(job.at)), command=words)
