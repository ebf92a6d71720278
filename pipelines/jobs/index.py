"""Build the search index over one side's embeddings."""

from __future__ import annotations

import os

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
        from miner.index._faiss import threads
        from miner.index.factory import Config, steady

        embeddings = Embeddings.open(self.task.parent("embeddings"))
        vectors = embeddings.array()
        settings = dict(self.task.stage.parameters)
        kind = settings.pop("index")
        # All cores, whatever a worker was given: it is the only task of its stage.
        alone = kind == "flat" or steady(Config(**settings), *vectors.shape)
        with threads(len(os.sched_getaffinity(0)) if alone else 1):
            index = build(kind, vectors, settings)
        return save(self.task.draft, index, {"embeddings": embeddings.fingerprint, "side": embeddings.side})
