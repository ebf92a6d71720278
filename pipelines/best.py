"""The best round's checkpoint under a name that stays: `best/` in the run's place.

It is a copy, an artifact of its own with the same files, so that `trainer evaluate --checkpoint RUN/best` takes it.
When another round becomes the best it is replaced, the manifest first: at no moment do old and new files pass for one
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miner.artifacts.copies import copied
from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import MANIFEST, Artifact, Draft, find_artifact
from miner.artifacts.store import Store
from pipelines.evidence import dev_rsums
from pipelines.plan import Step
from pipelines.stop import best_of

__all__ = ["BEST", "export_best"]

BEST = "best"


def export_best(steps: Sequence[Step], store: Store, check: Callable[[], None] = lambda: None) -> Artifact | None:
    """Copy the best round's checkpoint to `best/`, unless it is there whole. None while no round is evaluated.

    A kill leaves a folder without a manifest, and the next call begins again. Raises DamagedArtifact when the
    checkpoint is not what was committed.
    """
    best = best_of(dev_rsums(steps))
    if best is None:
        return None
    step = next(step for step in steps if step.stage.name == f"r{best}/fit")
    assert step.manifest is not None
    source = Artifact(store, step.prefix, step.manifest)
    parents = {"checkpoint": source.manifest.fingerprint}
    draft = Draft(store, BEST, source.manifest.kind, {"parents": parents, "round": best})
    held = _held(store, draft.inputs)
    if held is not None:
        return held
    check()
    store.remove(f"{BEST}/{MANIFEST}")
    store.remove(BEST)
    files = copied(source, draft)
    check()
    return draft.commit(files, source.manifest.meta)


def _held(store: Store, inputs: Mapping[str, Any]) -> Artifact | None:
    """The copy of this checkpoint that is there, every file hashed; a damaged one is as good as none."""
    try:
        found = find_artifact(store, BEST)
        if found is None or found.manifest.inputs != inputs:
            return None
        found.verify()
        return found
    except DamagedArtifact:
        return None
