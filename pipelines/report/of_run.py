"""The view of a run folder, finished or not: reads what is stored there, starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from miner.artifacts.dropped import DroppedRows, read_dropped
from miner.artifacts.embeddings import Embeddings
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact
from miner.artifacts.pairs import Direction, Side
from miner.artifacts.store import Store
from pipelines.evidence import gpu_hours_by_stage
from pipelines.plan import trained_on
from pipelines.report.view import RunView
from pipelines.stages import SHAPES_NOTHING
from pipelines.summary import round_views

if TYPE_CHECKING:
    from pipelines.plan import Step
    from pipelines.settings import Settings
    from trainer.data import Dataset

__all__ = ["run_view", "view_of"]


def view_of(store: Store) -> RunView:
    """The run in a store. Raises BadInput when there is none, no round of it is finished, or its data are not here."""
    from pipelines.loop import saved_data, saved_settings, steps_of
    from trainer.data import load

    settings = saved_settings(store)
    data = saved_data(store)
    steps = steps_of(settings, data, store) if data is not None else []
    if data is None or not any(step.manifest is not None and step.stage.work == "evaluate" for step in steps):
        raise BadInput(f"{store.url}: no round is finished yet; let `pipelines run` come further.")
    dataset = load(settings.data, "train")
    if dataset.fingerprint != data.fingerprints["train"]:
        raise BadInput(f"{dataset.name}: not the data that the run in {store.url} was started on; put those back.")
    return run_view(store, settings, steps, dataset)


def run_view(store: Store, settings: Settings, steps: Sequence[Step], dataset: Dataset) -> RunView:
    """The same where the plan and the training data are at hand. Raises DamagedArtifact."""
    done = {step.stage.name: step for step in steps if step.manifest is not None}
    spent = gpu_hours_by_stage(store)
    rounds = [
        replace(
            view,
            # The page is the same whether its own stage has run already.
            seconds={stage: seconds for stage, seconds in view.seconds.items() if stage != "report"},
            gpu_hours=sum(
                hours
                for stage, hours in spent.items()
                if stage.startswith(f"r{view.round}/") and not stage.endswith("/report")
            ),
            epochs=_history(store, done.get(f"r{view.round}/fit")),
            bytes={
                step.stage.label: sum(record.bytes for record in cast(Any, step.manifest).files.values())
                for step in done.values()
                if step.stage.round == view.round and step.stage.work != "report"
            },
        )
        for view in round_views(steps, store, dataset.pairs)
    ]
    last = max((view.round for view in rounds if view.tables), default=None)
    dropped: dict[Direction, DroppedRows] = {}
    vectors: dict[Side, npt.NDArray[np.float32]] = {}
    if last is not None:
        tables = trained_on(done, last)
        for direction, mined in tables.items():
            found = read_dropped(_artifact(store, mined), dataset.pairs, direction)
            if found is not None:
                dropped[direction] = found
        vectors = _vectors(store, done, max(mined.stage.round for mined in tables.values()))
    shown = {name: section for name, section in settings.dump().items() if name not in SHAPES_NOTHING}
    return RunView(dataset, rounds, f"quintain: {dataset.name}", shown, dropped, vectors, settings.run.seed)


def _artifact(store: Store, step: Step) -> Artifact:
    return Artifact(store, step.prefix, cast(Any, step.manifest))


def _history(store: Store, step: Step | None) -> list[dict[str, Any]]:
    if step is None or step.removed:
        return []
    found: list[dict[str, Any]] = json.loads(_artifact(store, step).read("history.json"))["epochs"]
    return found


def _vectors(store: Store, done: Mapping[str, Step], round_: int) -> dict[Side, npt.NDArray[np.float32]]:
    """Of both sides, or none: `gc` may have removed them."""
    found: dict[Side, npt.NDArray[np.float32]] = {}
    both: tuple[Side, Side] = ("image", "text")
    for side in both:
        step = done.get(f"r{round_}/encode-{side}")
        if step is None or step.removed:
            return {}
        found[side] = Embeddings.open(_artifact(store, step)).array()
    return found
