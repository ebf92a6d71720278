"""What the rules of [stop] and the mark of the best round are decided from: metrics, tables, and the run's log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import PAIRS, Direction, open_pairs
from miner.artifacts.store import Store
from pipelines.jobs import artifact_at
from pipelines.log import lines
from pipelines.plan import Step, trained_on
from pipelines.settings import Settings
from pipelines.staleness import stale_steps
from pipelines.stop import Stop, decide
from pipelines.summary import overlap

__all__ = ["dev_rsums", "gpu_hours", "gpu_hours_by_stage", "overlaps", "stop_of", "table_figures"]


def dev_rsums(steps: Sequence[Step]) -> list[float]:
    """Dev rsum, in percent points, of the rounds that are evaluated: from round 0 up to the first that is not."""
    evaluated = {step.stage.round: step.manifest for step in steps if step.stage.work == "evaluate"}
    rsums: list[float] = []
    while (manifest := evaluated.get(len(rsums))) is not None:
        rsums.append(float(manifest.meta["metrics"]["dev"]["rsum"]))
    return rsums


def gpu_hours(store: Store) -> float:
    """Hours of stages times GPUs at work, of every attempt in the run's log; of a killed one its finished epochs."""
    return sum(gpu_hours_by_stage(store).values())


def gpu_hours_by_stage(store: Store) -> dict[str, float]:
    """The same of each stage, by its name in the run: `r3/mine-i2t`."""
    spent: dict[str, float] = defaultdict(float)
    attempts: dict[tuple[str, str], float] = defaultdict(float)  # GPU-seconds of an attempt that has not ended
    for line in lines(store):
        stage, event, gpus = str(line.get("stage", "")), line.get("event"), float(line.get("gpus", 1))
        attempt = (stage, line["prefix"])
        if event == "start":
            spent[stage] += attempts.pop(attempt, 0.0)
        elif event == "epoch":
            attempts[attempt] += gpus * float(line["seconds"])
        elif event == "done":
            attempts.pop(attempt, None)  # its epochs are part of the whole
            spent[stage] += gpus * float(line["seconds"])
    for (stage, _), seconds in attempts.items():
        spent[stage] += seconds
    return {stage: seconds / 3600 for stage, seconds in spent.items()}


def stop_of(settings: Settings, steps: Sequence[Step], store: Store) -> Stop | None:
    """Which rule of [stop] ends the run, the same for all steps and for those that are left up to that round.

    Raises DamagedArtifact for a table whose bytes changed.
    """
    done = {step.stage.name: step for step in steps if step.manifest is not None}
    fitted = -1
    while f"r{fitted + 1}/fit" in done:
        fitted += 1

    def least_overlap(round: int) -> float | None:
        return min(overlaps(done, store, round).values(), default=None)

    return decide(settings.stop, settings.run.rounds, dev_rsums(steps), least_overlap, fitted, lambda: gpu_hours(store))


def overlaps(done: Mapping[str, Step], store: Store, round: int) -> dict[Direction, float]:
    """By direction, the share of the negatives that a round trains on which were in the tables that the round before
    trained on; empty where there are none, or where they are the same tables. Raises DamagedArtifact."""
    before = trained_on(done, round - 1)
    return {
        direction: _overlap(store, before[direction].prefix, later.prefix)
        for direction, later in trained_on(done, round).items()
        if direction in before and before[direction].prefix != later.prefix
    }


def table_figures(settings: Settings, steps: Sequence[Step], store: Store, round: int) -> dict[str, float]:
    """Where tables may be older than the model that trains on them, how old they are and what is new in them:
    {"tables/stale_steps", "tables/overlap_i2t", ...}; see `stale_steps` and `overlaps`."""
    if settings.run.refresh == "sync":
        return {}
    known = {step.stage.name: step for step in steps if step.state != "waiting"}
    age = stale_steps(known, store, round)
    if age is None:
        return {}
    shares = {f"tables/overlap_{direction}": share for direction, share in overlaps(known, store, round).items()}
    return {"tables/stale_steps": float(age), **shares}


@lru_cache(maxsize=256)
def _overlap(store: Store, earlier: str, later: str) -> float:
    """A folder's name is the hash of what its table was made from, so an answer stays right."""
    pairs = open_pairs(artifact_at(store, PAIRS))
    return overlap(*(NegativeTable.open(artifact_at(store, prefix), pairs) for prefix in (earlier, later)))
