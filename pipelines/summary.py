"""What a run has shown so far, round by round, for the closing table and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from miner.artifacts.manifest import Artifact
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import Store
from pipelines.jobs.analyze import counted
from pipelines.log import lines
from pipelines.plan import Step, trained_on
from pipelines.report import RoundView
from pipelines.staleness import stale_steps
from pipelines.stop import best_of

__all__ = ["Found", "found_by_search", "overlap", "round_views", "seconds_by_prefix"]


def round_views(steps: Sequence[Step], store: Store, pairs: Pairs) -> list[RoundView]:
    """One view per round whose evaluation is done, the best of them marked. Raises DamagedArtifact."""
    seconds = seconds_by_prefix(store)
    views: list[RoundView] = []
    done = {step.stage.name: step for step in steps if step.manifest is not None}
    for round in sorted({step.stage.round for step in done.values()}):
        evaluated = done.get(f"r{round}/evaluate")
        if evaluated is None:
            continue
        mined, before = trained_on(done, round), trained_on(done, round - 1)
        tables = {
            direction: NegativeTable.open(Artifact(store, step.prefix, cast(Any, step.manifest)), pairs)
            for direction, step in mined.items()
        }
        # Where the tables of the round before are trained on once more, nothing is new, and nothing to compare.
        again = {d for d in mined if d in before and mined[d].prefix == before[d].prefix}
        earlier = {d: table for d, table in (views[-1].tables if views else {}).items() if d not in again}
        looked = done.get(f"r{round}/analyze")
        views.append(
            RoundView(
                round=round,
                metrics=cast(Any, evaluated.manifest).meta["metrics"],
                tables=tables,
                hardness={d: found for d, table in tables.items() if (found := hardness(table)) is not None},
                overlap={d: overlap(earlier[d], table) for d, table in tables.items() if d in earlier},
                seconds={
                    name.partition("/")[2]: seconds[step.prefix]
                    for name, step in done.items()
                    if step.stage.round == round and step.prefix in seconds
                },
                stale_steps=stale_steps(done, store, round),
                recall={d: seen.share for d, table in tables.items() if (seen := found_by_search(table.provenance))},
                contributing=counted(Artifact(store, looked.prefix, cast(Any, looked.manifest))) if looked else {},
            )
        )
    best = best_of([view.metrics["dev"]["rsum"] for view in views])
    return [replace(view, best=index == best) for index, view in enumerate(views)]


def hardness(table: NegativeTable) -> float | None:
    """Mean of s(anchor, negative) - lowest s(anchor, positive) over all negatives of a table; None without one."""
    if not (table.negatives >= 0).any():
        return None
    return float(np.nanmean(table.scores - table.lowest_positive[:, None]))


class Found(NamedTuple):
    """What a search that may miss some found: `share` of the `k` hardest, over `anchors` of a sample."""

    share: float
    k: int
    anchors: int

    def __str__(self) -> str:
        return f"found {self.share:.1%} of the {self.k} hardest ({self.anchors} anchors compared with everything)"


def found_by_search(provenance: Mapping[str, Any]) -> Found | None:
    """What a table says of its search: of the candidates of a second stage, else of an approximate index; None of an
    exact one."""
    measured = provenance.get("stage_one") or provenance.get("recall")
    if not measured:
        return None
    k = max(measured["recall"], key=int)
    return Found(float(measured["recall"][k]), int(k), int(measured["anchors"]))


def overlap(earlier: NegativeTable, later: NegativeTable) -> float:
    """Share of the later table's negatives that the earlier one holds for the same anchor."""
    width = max(int(earlier.negatives.max(initial=0)), int(later.negatives.max(initial=0))) + 1
    before, after = _codes(earlier, width), _codes(later, width)
    return float(np.isin(after, before).mean()) if len(after) else 0.0


def _codes(table: NegativeTable, width: int) -> npt.NDArray[np.int64]:
    """One number per (anchor, negative)."""
    anchors, ranks = np.nonzero(table.negatives >= 0)
    return anchors * width + table.negatives[anchors, ranks]


def seconds_by_prefix(store: Store) -> dict[str, float]:
    """Seconds that each artifact's stage took when it last finished, from the run's log, by the artifact's folder."""
    return {line["prefix"]: float(line["seconds"]) for line in lines(store) if line["event"] == "done"}
