"""Who is told what happens in a run: files, trackers, a webhook. None of it is an artifact, and none can fail a run.

The loop makes an `Event` wherever something happens (`told.py`, `loop.run`) and gives it to a `Watch`, which hands it
to every tracker in a thread of its own. A tracker is one module here, and its name is the module's:

    Config          frozen settings; `trackers = ["NAME:KEY=VALUE,..."]` in the run file
    connect(config, about) -> Observer
                    called in the tracker's own thread; raises TrackerFailed with a sentence when it cannot work
    APART           True for one with threads and exit hooks of its own: it lives in a child process, which can be ended
    CLOSING         seconds that it may take to end

What was done before a kill is not told once more, but for the figures of finished rounds, as `again`, for trackers that
hold no history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from miner.artifacts.errors import BadInput
from trainer import registry

__all__ = ["FOLDER", "About", "Event", "Kind", "Observer", "TrackerFailed", "WatchConfig"]

FOLDER = "watch"  # in a run folder: what trackers write unless they are told another place
Kind = Literal[
    "run_start", "stage_start", "shard_done", "epoch", "stage_done", "round_done", "round_failed", "run_done",
    "run_failed",
]  # fmt: skip


class WatchConfig(BaseModel):
    """`trackers`: each NAME or NAME:KEY=VALUE,...; a file of `pipelines/trackers/` each, with its settings.

    [default: tensorboard for a run in a folder, none in an object store]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trackers: tuple[str, ...] | None = Field(default=None, repr=False)

    @field_validator("trackers")
    @classmethod
    def _known(cls, trackers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for tracker in trackers or ():
            try:
                name, settings = registry.spoken(tracker)
            except BadInput:  # whose text would quote what may be a secret
                raise ValueError(f"settings of {tracker.partition(':')[0]!r} are KEY=VALUE,KEY=VALUE") from None
            registry.configure("pipelines.trackers", name, settings)
        return trackers

    def chosen(self, about: About) -> list[tuple[str, Any]]:
        """(name, its `Config`) of every tracker that is to be told of a run."""
        usual = ("tensorboard",) if about.folder is not None else ()
        spoken = [registry.spoken(tracker) for tracker in (usual if self.trackers is None else self.trackers)]
        return [(name, registry.configure("pipelines.trackers", name, settings)) for name, settings in spoken]


@dataclass(frozen=True)
class Event:
    """Something happened in the run at `run`, at `time` (seconds since 1970).

    `stage` is its name inside the round (`mine-i2t`); `shard` how many shards of it are done; `step` the number of the
    epoch counted over all rounds. `seconds` is how long the stage or epoch took. `figures`: of an epoch loss, learning
    rate and the like; of a round its metrics: `dev/rsum`, `test/i2t_r1` and so on; of a stage that mined, what its
    search found: `tables/recall_i2t`.
    """

    kind: Kind
    run: str
    time: float
    round: int | None = None
    stage: str | None = None
    shard: int | None = None
    step: int | None = None
    seconds: float | None = None
    level: Literal["info", "warning", "error"] = "info"
    message: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    again: bool = False


@dataclass(frozen=True)
class About:
    """The run that a tracker is told of: its place, the local folder that this is (None in an object store), and its
    settings by `section.key`."""

    run: str
    folder: Path | None
    settings: Mapping[str, str]

    def place(self, path: str, what: str) -> Path:
        """A relative path is meant below `watch/` in the run folder. Raises TrackerFailed where that is no folder."""
        if Path(path).is_absolute():
            return Path(path)
        if self.folder is None:
            raise TrackerFailed(f"the run is in an object store; give {what} an absolute path")
        return self.folder / FOLDER / path


class Observer(Protocol):
    """Told of events, one after the other, in one thread. Whatever it raises is said once; after a few it is let go."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


class TrackerFailed(Exception):
    """A tracker cannot work; the text is a sentence for people and holds no secret."""
