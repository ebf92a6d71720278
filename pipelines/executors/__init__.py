"""Where a stage's work is done. Every executor commits the same bytes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Protocol

from miner.artifacts.manifest import Artifact
from pipelines.jobs import Task
from pipelines.progress import Progress
from pipelines.resources import ExecutorConfig
from pipelines.trackers import Observer

__all__ = ["Executor", "observers_of", "open_executor"]


class Executor(Protocol):
    @property
    def parallel(self) -> int:
        """How many fits of one thread may be executed at once, from as many threads of the caller."""
        ...

    @property
    def branches(self) -> int:
        """How many stages of one run may be executed at once, training and refresh, from as many threads."""
        ...

    def gpus_of(self, task: Task) -> int:
        """How many GPUs work on it at once; 1 where there is none, for the machine itself."""
        ...

    def execute(self, task: Task, progress: Progress) -> Artifact:
        """Do all parts of a task, then its finish. Errors of the user's making arrive as they were raised."""
        ...

    def rest(self) -> None:
        """No stage of the refresh is at hand: give back what is held for the next one."""
        ...

    def give_up(self) -> None:
        """What is executed in other threads is to end now, by an error; nothing follows but `close`."""
        ...

    def close(self) -> None: ...


def open_executor(config: ExecutorConfig, progress: Progress, *, many: bool = False) -> Executor:
    """The executor that `config` names; `many` if it is for many small trainings at once."""
    if config.kind == "inline":
        from pipelines.executors.inline import InlineExecutor

        return InlineExecutor()
    _environment(config)
    from pipelines.executors.ray import RayExecutor

    return RayExecutor(config, progress, many=many)


def observers_of(config: ExecutorConfig) -> list[tuple[str, Callable[[], Observer]]]:
    """Who is told of a run because of where it runs, by name; asked once the executor is open."""
    if config.kind == "inline":
        return []
    from pipelines.executors.ray_metrics import RayMetrics

    return [("ray metrics", RayMetrics)]


def _environment(config: ExecutorConfig) -> None:
    """What ray reads once, when it is imported; a user's own values stay.

    No usage report leaves the machine. A local cluster gets a token that only this process and its children know, so
    that nobody else on the machine can run code in it, and no token file is written into the user's home.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray Train asks its workers every 2 s how they are, and a fit that is over waits for that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # What a lost worker answered while others were waited for has been told in a sentence; Ray would add a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A call that comes too late, after the end of a run, must not start another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if config.address:
        # How often Ray asks what listens there and does not answer, such as a dashboard: 40 s each, and 20 times else.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "2")
    elif "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
