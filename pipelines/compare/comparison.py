"""The same data, model, seeds and budget of updates under a list of objectives: what to train with, and why.

A comparison file is a run file with these instead of [loss]:

[compare]      seeds = 3
[[objective]]  label = "GOAL nca x lin", name = "goal", triplet = "nca", pair = "lin"

Every objective x seed is a *member*: a run of the loop like any other. All members live in one folder and share what
they have in common (two objectives with the same online part share round 0), because artifacts are found by what they
were made from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from pipelines.resources import ExecutorConfig
from pipelines.settings import Settings
from trainer import losses, registry

__all__ = ["DEMO", "CompareConfig", "Comparison", "Member"]

DEMO = Path(__file__).parent / "demo.toml"
_SECTIONS = ("compare", "objective", "run", "data", "model", "fit", "encode", "index", "mine", "analyze", "executor")


class CompareConfig(BaseModel):
    """`seeds` runs of every objective, with seeds [run] seed, seed + 1, ...; objectives are paired by seed.

    Every objective makes `steps_per_epoch` updates per epoch, also one whose batches are images with all captions.
    [default: as many as one pass over the pairs takes]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seeds: int = Field(default=3, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)


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
        """Read a comparison file; `extra` objectives (`NAME:KEY=VALUE,...`) come after its own, each labelled as it is
        written. Raises BadInput."""
        raw = registry.read_toml(path, "file", "`trainer compare --demo` shows one at work.")
        if "loss" in raw:
            raise BadInput(f"{path}: [loss] is not a section of a comparison; write each loss as [[objective]].")
        for section in raw:
            if section not in _SECTIONS:
                nearest = difflib.get_close_matches(section, _SECTIONS, 1)
                hint = f"did you mean {_shown(nearest[0])}?" if nearest else f"known: {', '.join(_SECTIONS)}."
                raise BadInput(f"{path}: [{section}] is not a section of a comparison; {hint}")
        objectives, compare = raw.pop("objective", []), raw.pop("compare", {})
        if not isinstance(objectives, list) or not all(isinstance(o, dict) for o in objectives):
            raise BadInput(f"{path}: objective = {objectives!r}; write each as a section [[objective]].")
        if not isinstance(compare, dict):
            raise BadInput(f"{path}: compare = {compare!r}; write it as a section, [compare], with keys below.")
        compare = registry.validated(CompareConfig, compare, f"{path}: [compare]")
        base = Settings.read(raw, path)
        if "steps_per_epoch" in base.fit:
            raise BadInput(
                f"{path}: fit.steps_per_epoch is set by [compare], for all objectives alike; write it there."
            )
        found: dict[str, Any] = {}
        for objective in objectives:
            label, loss = _objective(objective, f"{path}: [[objective]]")
            if label in found:
                raise BadInput(f"{path}: two objectives are called {label!r}; give one another `label`.")
            found[label] = loss
        for text in extra:
            if text in found:
                raise BadInput(
                    f"--objective: an objective is called {text!r} already; write one of them into {path} with "
                    "another `label`."
                )
            found[text] = _of_flag(text)
        if not found:
            raise BadInput(f"{path}: there is no [[objective]]; write at least one, or give --objective.")
        mined = [label for label, loss in found.items() if loss.needs_tables]
        if mined and base.run.rounds == 0:
            raise BadInput(
                f"{path}: {mined[0]!r} trains on offline negatives, but run.rounds = 0 mines none; set it to 1 or more."
            )
        return cls(base, compare, found)

    def with_executor(self, executor: ExecutorConfig) -> Comparison:
        return replace(self, base=self.base.with_executor(executor))

    def members(self, num_pairs: int) -> list[Member]:
        """Every objective with every seed, seeds outermost: what is stopped early has still seen all objectives."""
        steps = self.compare.steps_per_epoch or max(num_pairs // self.base.fit_config(0).batch_size, 1)
        fit = {**self.base.fit, "steps_per_epoch": steps}
        analyze = self.base.analyze
        if analyze.rounds == "none":
            analyze = analyze.model_copy(update={"rounds": "last"})
        found = []
        for seed in range(self.base.run.seed, self.base.run.seed + self.compare.seeds):
            run = self.base.run.model_copy(update={"seed": seed})
            for label, loss in self.objectives.items():
                # One that mines nothing has nothing to refresh.
                its = run if loss.needs_tables else run.model_copy(update={"refresh": "sync"})
                found.append(Member(label, seed, replace(self.base, run=its, loss=loss, fit=fit, analyze=analyze)))
        return found


def _objective(raw: Mapping[str, Any], where: str) -> tuple[str, Any]:
    values = dict(raw)
    name, label = values.pop("name", None), values.pop("label", None)
    if not isinstance(name, str):
        found = "is missing" if name is None else f"= {name!r}"
        raise BadInput(f"{where}: name {found}; it is the loss, one of {', '.join(losses.losses())}.")
    if label is None:
        label = ", ".join([name, *(f"{key} {value}" for key, value in values.items())])
    if not isinstance(label, str) or not label.strip() or len(label.splitlines()) > 1:
        raise BadInput(f"{where}: label = {label!r}; write one line of text, or leave it out.")
    try:
        return label, losses.configure(name, values)
    except BadInput as wrong:
        raise BadInput(f"{where} {label!r}: {wrong}") from wrong


def _of_flag(text: str) -> Any:
    try:
        return losses.configure(*registry.spoken(text))
    except BadInput as wrong:
        raise BadInput(f"--objective: {wrong}") from wrong


def _shown(section: str) -> str:
    return f"[[{section}]]" if section == "objective" else f"[{section}]"
