"""The same data, model, seeds and budget of updates under a list of objectives: what to train with, and why.

A comparison file is a run file with these instead of [loss]:

[compare]      seeds = 3
[[objective]]  label = "GOAL nca x lin", name = "goal", triplet = "nca", pair = "lin"

Every objective x seed is a *member*: a run of the loop like any other. All members live in one folder and share what
they have in common (two objectives with the same online part share round 0), because artifacts are found by what they
were made from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from pipelines.settings import ExecutorConfig, Settings
from trainer import losses, registry

__all__ = ["DEMO", "CompareConfig", "Comparison", "Member"]

DEMO = Path(__file__).parent / "demo.toml"


class CompareConfig(BaseModel):
    """`seeds` runs of every objective, with seeds [run] seed, seed + 1, ...; objectives are paired by seed.

    `steps_per_epoch` 0 gives every objective as many updates per epoch as one pass over the pairs takes, also one whose
    batches are images with all their captions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(default=3, ge=1)
    steps_per_epoch: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Member:
    """One objective with one seed."""

    label: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A validated comparison file: the run that all share, and the loss of every objective by its label."""

    base: Settings
    compare: CompareConfig
    objectives: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path, extra: Sequence[str] = ()) -> Comparison:
        """Read a comparison file; `extra` objectives (`NAME:KEY=VALUE,...`) come after its own. Raises BadInput."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as missing:
            raise BadInput(f"{path}: there is no such file; `trainer compare --demo` shows one at work.") from missing
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
            raise BadInput(f"{path}: not valid TOML: {broken}.") from broken
        objectives = raw.pop("objective", [])
        compare = registry.validated(CompareConfig, raw.pop("compare", {}), f"{path}: [compare]")
        if not isinstance(objectives, list) or not all(isinstance(o, dict) for o in objectives):
            raise BadInput(f"{path}: objective = {objectives!r}; write each as a section [[objective]].")
        if "loss" in raw:
            raise BadInput(f"{path}: [loss] is not a section of a comparison; write each loss as [[objective]].")
        base = Settings.read(raw, path)
        found: dict[str, Any] = {}
        for objective in (*objectives, *(_of_flag(text) for text in extra)):
            label, loss = _objective(objective, f"{path}: [[objective]]")
            if label in found:
                raise BadInput(f"{path}: two objectives are called {label!r}; give one another `label`.")
            found[label] = loss
        if not found:
            raise BadInput(f"{path}: there is no [[objective]]; write at least one, or give --objective.")
        return cls(base, compare, found)

    def with_executor(self, executor: ExecutorConfig) -> Comparison:
        return replace(self, base=replace(self.base, executor=executor))

    def members(self, num_pairs: int) -> list[Member]:
        """Every objective with every seed, seeds outermost: what is stopped early has still seen all objectives."""
        steps = self.compare.steps_per_epoch or max(num_pairs // int(self.base.fit.get("batch_size", 128)), 1)
        fit = {**self.base.fit, "steps_per_epoch": steps}
        analyze = self.base.analyze
        if analyze.rounds == "none":
            analyze = analyze.model_copy(update={"rounds": "last"})
        found = []
        for seed in range(self.base.run.seed, self.base.run.seed + self.compare.seeds):
            run = self.base.run.model_copy(update={"seed": seed})
            for label, loss in self.objectives.items():
                found.append(Member(label, seed, replace(self.base, run=run, loss=loss, fit=fit, analyze=analyze)))
        return found


def _objective(raw: Mapping[str, Any], where: str) -> tuple[str, Any]:
    values = dict(raw)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise BadInput(f"{where}: name is missing; it is the loss: {', '.join(losses.losses())}.")
    label = values.pop("label", None) or ", ".join([name, *(f"{key} {value}" for key, value in values.items())])
    try:
        return str(label), losses.configure(name, values)
    except BadInput as wrong:
        raise BadInput(f"{where} {label!r}: {wrong}") from wrong


def _of_flag(text: str) -> dict[str, Any]:
    name, settings = losses.spoken(text)
    return {"label": text, "name": name, **settings}
