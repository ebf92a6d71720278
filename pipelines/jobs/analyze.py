"""Count the samples that contribute to the round's loss, with the model the round ended with."""

from __future__ import annotations

import json
from typing import get_args

from miner.artifacts.manifest import Artifact, FileRecord, canonical_json
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction
from pipelines.jobs import Task

__all__ = ["COUNTED_AT", "COUNTS", "AnalyzeJob", "counted"]

COUNTS = "counts.json"
COUNTED_AT = 0.01


def counted(artifact: Artifact) -> dict[str, float]:
    """Negatives per query whose weight is above `COUNTED_AT`: {"i2t_online": ..., "t2i_offline": ..., ...}."""
    return {
        f"{row['direction']}_{row['negatives']}": row["share"]
        for row in json.loads(artifact.read(COUNTS))["rows"]
        if row["threshold"] == COUNTED_AT and row["of_chance"] is None and row["direction"] != "both"
    }


class AnalyzeJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("an analysis is done in one piece")

    def finish(self) -> Artifact:
        import torch

        from trainer import losses
        from trainer.analyze import analyze
        from trainer.checkpoint import Checkpoint
        from trainer.encode import default_device

        parameters = dict(self.task.stage.parameters)
        loss = dict(parameters["loss"])
        roles, pairs = dict(self.task.parents), self.task.pairs()
        tables = {d: NegativeTable.open(self.task.parent(d), pairs) for d in get_args(Direction) if d in roles}
        # As encode does: sums round differently on another number of threads, and workers have another one.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            rows = analyze(
                self.task.dataset("train"),
                Checkpoint.open(self.task.parent("checkpoint")),
                losses.configure(loss.pop("name"), loss),
                tables=tables or None,
                batch_size=parameters["batch_size"],
                max_batches=parameters["batches"],
                seed=self.task.settings.run.seed,
                device=default_device(),
            )
        finally:
            torch.set_num_threads(threads)
        # JSON has no NaN: a figure that does not apply is null.
        rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        return self.task.draft.commit({COUNTS: self.task.draft.add(COUNTS, canonical_json({"rows": rows}))}, {})
