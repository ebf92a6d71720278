"""What happens in one stage, told from one place: to the person who waits, to the run's log, and to the watch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miner.artifacts.manifest import Manifest
from miner.artifacts.store import Store
from pipelines import log
from pipelines.evidence import table_figures
from pipelines.plan import Step
from pipelines.progress import Progress
from pipelines.settings import Settings
from pipelines.stages import Stage
from pipelines.summary import found_by_search
from pipelines.trackers import Event
from pipelines.trackers._watch import Watch

__all__ = ["Told", "tell_failure", "tell_round"]

_LOW = 0.9  # share of the hardest that candidates should hold
_OF_EPOCH = ("loss", "lr", "hardness", "offline_hardness", "mean_negative", "wrong_share", "std", "pairs_per_second")


@dataclass(frozen=True)
class Told:
    """A progress that also writes the log, with how many GPUs are at work, and tells the watch."""

    progress: Progress
    store: Store
    watch: Watch
    stage: Stage
    prefix: str
    gpus: int
    before: int = 0  # epochs of the rounds before

    def begin(self, why: str, figures: Mapping[str, float]) -> None:
        """The stage begins; `figures` are of the tables it trains on, if they are older than its model."""
        if figures:
            self.progress.say(f"{self.stage.name}: {_age(figures)}")
        self.progress.start(self.stage.name, self.stage.parts, self.stage.unit, why)
        self._log("start", **({"figures": dict(figures)} if figures else {}))
        self._tell("stage_start", message=why, figures=figures)

    def end(self, seconds: float, made: Manifest) -> None:
        """Its artifact is committed."""
        self._log("done", seconds=round(seconds, 3))
        found = found_by_search(made.meta.get("provenance", {}))
        figures = {f"tables/recall_{self.stage.target}": found.share} if found is not None else {}
        self._tell("stage_done", seconds=seconds, figures=figures)
        self.progress.finish(seconds, f"({found})" if found is not None else "")
        about = made.meta.get("provenance", {})
        if found is not None and found.share < _LOW and "num_candidates" in about:
            what = f"mine.num_candidates ({about['num_candidates']})"
            what += " or mine.recall" if "factory" in about else ""
            self.progress.say(f"{self.stage.name}: that is low; raise {what} to find more of the hardest negatives")

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        self.progress.start(name, total, unit, why)

    def advance(self, done: int, note: str = "") -> None:
        self._tell("shard_done", shard=done)
        self.progress.advance(done, note)

    def epoch(self, line: dict[str, Any]) -> None:
        # A resumed epoch has its line, unless the process died after the epoch's file and before its line.
        if not line["resumed"] or not self._has_epoch(line["epoch"]):
            self._log(
                "epoch",
                **{key: line[key] for key in ("epoch", "seconds", "waited", "steps", "pairs_per_second", "device")},
            )
            self._tell(
                "epoch",
                step=self.before + line["epoch_in_round"],
                seconds=line["seconds"],
                level="warning" if line["warning"] else "info",
                message=line["warning"] or "",
                figures=_epoch_figures(line),
            )
        self.progress.epoch(line)

    def finish(self, seconds: float, note: str = "") -> None:
        self.progress.finish(seconds, note)

    def say(self, line: str) -> None:
        self.progress.say(line)

    def close(self) -> None:
        self.progress.close()

    def _log(self, event: str, **about: Any) -> None:
        line = {"stage": self.stage.name, "prefix": self.prefix, "event": event, "time": time.time()}
        log.append(self.store, {**line, "gpus": self.gpus, **about})

    def _has_epoch(self, epoch: int) -> bool:
        """Whether the log has this artifact's line of an epoch."""
        wanted = (self.prefix, "epoch", epoch)
        return any((line["prefix"], line.get("event"), line.get("epoch")) == wanted for line in log.lines(self.store))

    def _tell(self, kind: Any, **about: Any) -> None:
        self.watch.tell(Event(kind, self.store.url, time.time(), self.stage.round, self.stage.label, **about))


def _age(figures: Mapping[str, float]) -> str:
    """Of `table_figures`, a sentence."""
    shares = [f"{share:.0%} ({name.rpartition('_')[2]})" for name, share in figures.items() if "overlap" in name]
    new = f"; the tables before hold {', '.join(shares)} of their negatives" if shares else ""
    return f"its tables were mined {figures['tables/stale_steps']:.0f} steps ago{new}"


def _epoch_figures(line: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: line[name] for name in _OF_EPOCH if line.get(name) is not None}
    return figures | {f"parts/{name}": value for name, value in {**line["parts"], **line["figures"]}.items()}


def tell_round(
    settings: Settings, steps: Sequence[Step], round: int, store: Store, watch: Watch, again: bool = False
) -> None:
    """A round is done, or was done before."""
    evaluated = next(step.manifest for step in steps if step.stage.name == f"r{round}/evaluate")
    assert evaluated is not None
    figures = _round_figures(evaluated.meta["metrics"]) | table_figures(settings, steps, store, round)
    watch.tell(Event("round_done", store.url, time.time(), round=round, figures=figures, again=again))


def tell_failure(
    step: Step, failed: Exception, at_work: Sequence[Step], store: Store, progress: Progress, watch: Watch
) -> None:
    """A stage failed while others are `at_work`, which the run waits for before it ends with that error."""
    why = (str(failed).splitlines() or [type(failed).__name__])[0]
    at = step.stage
    watch.tell(Event("round_failed", store.url, time.time(), at.round, at.label, level="error", message=why))
    for other in at_work:
        progress.say(f"{at.name} failed: {why} The run ends once {other.stage.name}, which is at work, is done.")


def _round_figures(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{split: {metric: figure}} as {"split/metric": figure}."""
    return {f"{split}/{name}": float(value) for split, found in metrics.items() for name, value in found.items()}
