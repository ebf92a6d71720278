"""Build the search index over one side's embeddings."""

from __future__ import annotations

from miner.artifacts.embeddings import Embeddings
from miner.artifacts.manifest import Artifact, FileRecord
from pipelines.jobs import Task

__all__ = ["IndexJob"]


class IndexJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("an index is built in one piece")

    def finish(self) -> Artifact:
        from miner.index import build, save

        embeddings = Embeddings.open(self.task.parent("embeddings"))
        index = build(self.task.stage.parameters["index"], embeddings.array())
        return save(self.task.draft, index, {"embeddings": embeddings.fingerprint, "side": embeddings.side})
