"""The finished rounds of a run, for `trainer analyze --run`."""

from __future__ import annotations

from pathlib import Path

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.place import Place
from pipelines import loop
from pipelines.jobs import artifact_at
from pipelines.plan import trained_on
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset
from trainer.plugins import Round

__all__ = ["rounds"]


def rounds(run: Place | Path | str, dataset: Dataset) -> list[Round]:
    """Every round whose fit is done, with the tables it was trained on; round 0 has none.

    Raises BadInput when there is no run here, no finished round, or when the run is of other data than `dataset`.
    """
    place = Place.of(run)
    store = place.store
    settings = loop.saved_settings(store)
    data = loop.saved_data(store) or loop.describe(settings)
    if data.fingerprints["train"] != dataset.fingerprint:
        raise BadInput(
            f"{place}: this run is of other data than {dataset.name} {dataset.split}; give the data, the fold and the "
            "split train that it was started on."
        )
    done = {step.stage.name: step for step in loop.steps_of(settings, data, store) if step.manifest is not None}
    found = []
    for number in range(settings.run.rounds + 1):
        fitted = done.get(f"r{number}/fit")
        if fitted is None:
            break
        tables = {
            direction: NegativeTable.open(artifact_at(store, mined.prefix), dataset.pairs)
            for direction, mined in trained_on(done, number).items()
        }
        checkpoint = Checkpoint.open(artifact_at(store, fitted.prefix))
        found.append(Round(f"round {number}", checkpoint, tables or None))
    if not found:
        raise BadInput(f"{place}: no round of this run is finished yet; let `pipelines run` come further.")
    return found
