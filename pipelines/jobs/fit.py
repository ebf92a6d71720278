"""Train one round's epochs from the last round's checkpoint and this round's negative tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from miner.artifacts.manifest import Artifact, FileRecord
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction
from miner.artifacts.place import Place
from pipelines.jobs import Task

if TYPE_CHECKING:
    from trainer.training import EpochLog

__all__ = ["EPOCHS", "FitJob"]

EPOCHS = "epochs"  # folder of the draft where a killed fit finds its last finished epoch


class FitJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("a fit is one task")

    def finish(self, said: Callable[[dict[str, Any]], None] = lambda line: None) -> Artifact:
        """Raises AssertionError in a process that is not the training's first: `train` is for those."""
        artifact = self.train(said)
        assert artifact is not None
        return artifact

    def train(self, said: Callable[[dict[str, Any]], None]) -> Artifact | None:
        """The checkpoint, committed by the first of the training's processes; None in the others."""
        from trainer.checkpoint import Checkpoint
        from trainer.processes import Processes
        from trainer.training import fit

        settings, stage = self.task.settings, self.task.stage
        roles = dict(self.task.parents)
        pairs = self.task.pairs()
        tables = {d: NegativeTable.open(self.task.parent(d), pairs) for d in get_args(Direction) if d in roles}
        start = Checkpoint.open(self.task.parent("start")) if "start" in roles else None
        first_epoch, _ = settings.run.epochs_of(stage.round)
        draft = self.task.draft
        # Beside the artifact, wherever that is: whoever takes over, on any machine, goes on from the last epoch.
        scratch = Place(draft.store, f"{draft.prefix}/{EPOCHS}")
        history = []

        def told(log: EpochLog) -> None:
            history.append(log.history())
            said({**asdict(log), "epoch_in_round": log.epoch - first_epoch})

        checkpoint = fit(
            self.task.dataset("train"),
            settings.model,
            settings.loss if tables else settings.loss.online,
            settings.fit_config(stage.round),
            tables=tables or None,
            start=start,
            first_epoch=first_epoch,
            scratch=scratch,
            progress=told,
        )
        if not Processes.here().first:
            return None
        artifact = checkpoint.commit(draft, history)
        draft.store.remove(scratch.name)
        return artifact
