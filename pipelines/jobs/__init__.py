"""The work behind each stage: parts that any process can do, and a finish that commits. No ray here.

A task is a small value that pickles, so an executor can hand it to another process; that process opens what the task
names from the store, and keeps it for the next part. Parts are cut from the data and the settings alone, never from
the number of workers, and each is on disk before it counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

from miner.artifacts.errors import BadInput, Retryable
from miner.artifacts.manifest import Artifact, Draft, FileRecord, canonical_json, find_artifact
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore, Store
from pipelines.mounts import of_several_hosts
from pipelines.settings import Settings
from pipelines.stages import Stage

__all__ = ["Job", "Sharded", "Task", "artifact_at", "job_of", "named_rows", "settings_json"]

_UNSEEN_SECONDS, _LOOK_SECONDS = 90.0, 0.5


@dataclass(frozen=True)
class Task:
    """What a job is to make: the stage, the draft it fills, where its parents are, and the settings of the run."""

    stage: Stage
    draft: Draft
    parents: tuple[tuple[str, str], ...]  # role -> prefix of a committed artifact
    settings_json: str

    @property
    def settings(self) -> Settings:
        return _settings(self.settings_json)

    def prefix(self, role: str) -> str:
        """Where the parent that plays `role` is."""
        return dict(self.parents)[role]

    def parent(self, role: str) -> Artifact:
        """The committed artifact that plays `role`."""
        return artifact_at(self.draft.store, self.prefix(role))

    def dataset(self, split: str) -> Any:
        """The split of the run's data, read once per process. Raises BadInput when it changed since the plan."""
        section = canonical_json(self.settings.dump()["data"]).decode()
        dataset = _dataset(section, split)
        planned = self.stage.parameters["data"]
        planned = planned[split] if isinstance(planned, dict) else planned
        if dataset.fingerprint != planned:
            raise BadInput(
                f"{dataset.name}: the {split} data changed since the run was planned; run again to see what "
                "that means, in a new run folder if the change was meant."
            )
        return dataset

    def pairs(self) -> Pairs:
        """The training pairs."""
        return cast(Pairs, self.dataset("train").pairs)


class Job(Protocol):
    """One stage's work. `part` and `finish` may each run in any process; both are safe to repeat."""

    def __init__(self, task: Task) -> None: ...

    def part(self, index: int) -> FileRecord:
        """Make part `index`, or find it finished by an earlier attempt."""
        ...

    def finish(self) -> Artifact:
        """Put the parts together and commit."""
        ...


class Sharded(Job, Protocol):
    """One that is done in several parts."""

    def where(self, index: int) -> str:
        """Which rows part `index` is made of, as people read it."""
        ...


def named_rows(what: str, rows: tuple[int, int], ends: tuple[str, str]) -> str:
    """`image rows 32 to 63 (ids img-7 to img-9)`: `rows` are (start, stop), counted from 0; `ends` the ids of both."""
    start, stop = rows
    return f"{what} {start} to {stop - 1} (ids {ends[0]} to {ends[1]})"


def artifact_at(store: Store, prefix: str) -> Artifact:
    """The artifact committed at `prefix`. Where another host may have made it, it is looked for again for a while: who
    looked before it was there may be told so for a minute more (nfs(5), acdirmax). Raises Retryable if it went away, or
    is not seen from this host yet."""
    found = find_artifact(store, prefix)
    if found is None and isinstance(store, LocalStore) and of_several_hosts(store.root):
        end = time.monotonic() + _UNSEEN_SECONDS
        while found is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            found = find_artifact(store, prefix)
    if found is None:
        raise Retryable(f"{store.url}/{prefix}: gone, or not seen from here yet; run the same command again.")
    return found


def job_of(task: Task) -> Job:
    """The job of a stage: module `pipelines.jobs.<work>`, class `<Work>Job`."""
    import importlib

    module = importlib.import_module(f"pipelines.jobs.{task.stage.work}")
    return cast(Job, getattr(module, f"{task.stage.work.capitalize()}Job")(task))


def settings_json(settings: Settings) -> str:
    """The settings as a string that pickles, hashes and compares."""
    return canonical_json(settings.dump()).decode()


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    import json

    return Settings.parse(json.loads(text), "run")


@lru_cache(maxsize=4)
def _dataset(section: str, split: str) -> Any:
    """A split of the data that a [data] section names, whatever else a run's settings say."""
    import json

    from trainer.data import load

    return load(Settings.parse({"data": json.loads(section)}, "run").data, cast(Any, split))
