"""How old the tables are that a round trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from miner.artifacts.store import Store
from pipelines.jobs import artifact_at
from pipelines.plan import Step, trained_on

__all__ = ["stale_steps"]


def stale_steps(done: Mapping[str, Step], store: Store, round: int) -> int | None:
    """Updates between the model that mined a round's tables and the model its training begins with, 0 where they are
    one; None for a round without tables. `done`: steps by the names of their stages. Raises DamagedArtifact."""
    tables = trained_on(done, round)
    if not tables:
        return None
    mined = min(step.stage.round for step in tables.values())
    return sum(_updates(store, done[f"r{between}/fit"].prefix) for between in range(mined, round))


@lru_cache(maxsize=256)
def _updates(store: Store, prefix: str) -> int:
    """How many updates a fit made. A folder's name is the hash of what the model was made from: the answer stays."""
    return sum(int(epoch["steps"]) for epoch in json.loads(artifact_at(store, prefix).read("history.json"))["epochs"])
