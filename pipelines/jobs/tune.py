"""Choose how hard an approximate index is searched in one direction, and measure what it then finds."""

from __future__ import annotations

from miner.artifacts.manifest import Artifact, FileRecord, canonical_json
from pipelines.jobs import Task
from pipelines.jobs.mine import approximate

__all__ = ["TuneJob"]


class TuneJob:
    """Its artifact holds what a table says of it, {"factory", "search", "recall"}: in `tuned.json`, and in `meta`."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("settings are chosen in one piece")

    def finish(self) -> Artifact:
        from miner.tuning import prepare

        asked, draft = self.task.stage.parameters, self.task.draft
        with approximate(self.task, asked["direction"], asked["k"]) as (miner, vectors):
            found, _ = prepare(miner, vectors, asked["recall"], size=asked["recall_sample"], seed=asked["seed"])
        return draft.commit({"tuned.json": draft.add("tuned.json", canonical_json(found))}, found)
