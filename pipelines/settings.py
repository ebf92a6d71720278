"""The run file: one TOML, one section per owner, every key validated where its owner lives.

[run]       seed, rounds, epochs, ... (run_section.py)
[data]      format = "emoji", ...         (trainer.data)
[model]     name = "cnn_gru", ...         (trainer.models)
[loss]      name = "aoq", ...             (trainer.losses)
[fit]       batch_size, lr, ...           (trainer.training)
[encode]    shard_rows, batch_size        (here)
[index]     factory, train_sample         (here)
[mine]      k, shard_anchors, recall      (here)
[analyze]   rounds, batch_size, batches   (here)
[stop]      patience, overlap, gpu_hours  (stop.py)
[watch]     trackers                      (trackers/)
[executor]  kind, workers, address, ...   (resources.py)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction
from pipelines.resources import ExecutorConfig
from pipelines.run_section import RunConfig
from pipelines.stop import StopConfig
from pipelines.trackers import WatchConfig
from trainer import registry

__all__ = [
    "DEMO", "AnalyzeConfig", "EncodeConfig", "IndexConfig", "MineConfig", "RunConfig", "Settings",
]  # fmt: skip

DEMO = Path(__file__).parent / "demo.toml"
_NAMED = {"data": "format", "model": "name", "loss": "name"}
_PLAIN = ("run", "encode", "index", "mine", "analyze", "stop", "watch", "executor")
_FROM_RUN = ("epochs", "total_epochs", "seed")
Section = TypeVar("Section", bound=BaseModel)


class EncodeConfig(BaseModel):
    """`shard_rows` items make one file and one task; `batch_size` of them go through the encoder at once.

    A cross-attention model's regions and words are stored as `element_dtype`: "float16" moves SCAN's scores by up to
    about 3e-5 and BFAN's, which keeps or drops whole elements, by up to about 2e-3; "float32" does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shard_rows: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=256, ge=1)
    element_dtype: Literal["float16", "float32"] = "float16"


class IndexConfig(BaseModel):
    """What is searched: `factory` as `miner build-index` takes it. "Flat" compares everything; any other string, and
    "auto" from 50,000 items on, is an approximate index, searched as hard as [mine] `recall` takes.

    It is trained on `train_sample` vectors [default: 64 per list, at least 16,384], drawn by run.seed, which is that of
    k-means too. The number of workers and of threads leaves its bytes as they are; another kind of machine, or of
    faiss, may not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    factory: str = "Flat"
    train_sample: int | None = Field(default=None, ge=1)

    def of(self, rows: int) -> str:
        """The string for a gallery of this size, without "auto"."""
        from miner.index.factory import automatic

        return automatic(rows) if self.factory == "auto" else self.factory


class ByDirection(NamedTuple):
    """A number of each direction."""

    i2t: int
    t2i: int


class MineConfig(BaseModel):
    """`k` negatives are kept per anchor; `shard_anchors` anchors make one task.

    `k` and `num_candidates` are numbers of both directions or one of each, { i2t = 300, t2i = 60 }, as a loss may draw
    from pools of unequal size.

    `rules` drop candidates, as `miner mine --rule` takes them: ["default"]. They choose from `num_candidates` per
    anchor [default: 2 k], and the search goes deeper for an anchor that is left with fewer than k.

    An approximate [index] is searched as hard as it takes to find the share `recall` of what is searched for. That is
    chosen on `recall_sample` anchors [default: 1,000] and measured on as many others; the table holds the figure.

    For a cross-attention model, `num_candidates` [default: 4 k, and 200 at least] are searched with its pooled vectors
    and ranked by its own score; for `recall_sample` anchors [default: 100] everything is scored, to tell what that
    search missed. The table holds that figure, so another sample is another table.

    `verdicts` is a file of what people said of negatives (`pipelines serve` writes one): from round `verdicts_from` on,
    what they called false or too easy is dropped, before all rules. The run keeps a copy, so that a file that grows
    meanwhile changes nothing before the next `pipelines run`. `verdicts_sha256` is filled in when a run file is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    k: int | ByDirection = 50
    shard_anchors: int = Field(default=1024, ge=1)
    num_candidates: int | ByDirection | None = None
    recall: float = Field(default=0.95, gt=0, lt=1)
    recall_sample: int | None = Field(default=None, ge=1)
    rules: tuple[str, ...] = ()
    verdicts: str = ""
    verdicts_from: int = Field(default=1, ge=1)
    verdicts_sha256: str = ""

    @field_validator("k", "num_candidates", mode="plain")
    @classmethod
    def _counts(cls, value: Any) -> int | ByDirection | None:
        if value is None or isinstance(value, ByDirection):
            return value
        each = dict(value) if isinstance(value, Mapping) else {"i2t": value, "t2i": value}
        if set(each) != {"i2t", "t2i"} or not all(type(count) is int and count >= 1 for count in each.values()):
            raise ValueError("a whole number from 1 on is needed, or one of each direction: { i2t = 300, t2i = 60 }")
        return ByDirection(**each) if isinstance(value, Mapping) else each["i2t"]

    @field_serializer("k", "num_candidates")
    def _as_given(self, count: int | ByDirection | None) -> int | dict[str, int] | None:
        return count._asdict() if isinstance(count, ByDirection) else count

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        if not rules:
            return rules
        from miner.filters import chosen

        for rule in chosen(rules):
            if any(getattr(rule.config, name) for name in getattr(rule.rule, "FILES", ())):
                raise ValueError(
                    f"rule {rule.name} reads a file, and a run would not notice when it changes; leave it to `miner "
                    "filter`, or for verdicts set mine.verdicts"
                )
            if rule.opposite or "image" in rule.contents:
                needs = "the other direction's candidates" if rule.opposite else "pictures"
                raise ValueError(
                    f"rule {rule.name} needs {needs}, which a run does not have; leave it to `miner filter`"
                )
        return rules

    @property
    def kept_verdicts(self) -> str:
        """Where a run keeps its copy of the verdicts, below its folder; "" without."""
        return f"verdicts/{self.verdicts_sha256}{Path(self.verdicts).suffix}" if self.verdicts_sha256 else ""

    @property
    def selective(self) -> bool:
        """Whether negatives are chosen from candidates."""
        return bool(self.rules or self.verdicts_sha256)

    def of(self, direction: Direction, round: int) -> MineOf:
        """The same for one direction and round: its own numbers, without verdicts that do not hold there."""
        given = dict(self)
        if round < self.verdicts_from:
            given |= {"verdicts": "", "verdicts_sha256": ""}
        for name in ("k", "num_candidates"):
            if isinstance(given[name], ByDirection):
                given[name] = getattr(given[name], direction)
        return MineOf.model_construct(**given)

    def resolved(self, folder: Path) -> MineConfig:
        """The same with the file of verdicts found from `folder`, and hashed. Raises BadInput for what is none."""
        if not self.verdicts:
            return self.model_copy(update={"verdicts_sha256": ""})
        from miner.artifacts.manifest import digest_file
        from miner.verdicts import lines

        path = (folder / self.verdicts).resolve()
        lines(path)
        return self.model_copy(update={"verdicts": str(path), "verdicts_sha256": digest_file(path)})


class MineOf(MineConfig):
    """What `MineConfig.of` gives."""

    k: int
    num_candidates: int | None

    def candidates(self, gallery: int, two_stage: bool = True) -> int:
        """How many candidates are searched per anchor in a gallery of this size, for a second stage or for rules."""
        usual = max(4 * self.k, 200) if two_stage else 2 * self.k
        return min(self.num_candidates or usual, gallery)

    def searched(self, gallery: int, two_stage: bool) -> int:
        """How many are searched per anchor: candidates, or the negatives themselves."""
        if two_stage:
            return self.candidates(gallery)
        return max(self.k, self.candidates(gallery, False)) if self.selective else self.k


class AnalyzeConfig(BaseModel):
    """After which rounds to count the samples that contribute to the loss's gradient; over how large and many batches.

    [default: batches as large as a fit's, and as many as one epoch has]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rounds: Literal["none", "last", "all"] = "none"
    batch_size: int | None = Field(default=None, ge=2)
    batches: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Settings:
    """A validated run file. `data`, `model` and `loss` are the `Config` of the module that their section names."""

    run: RunConfig
    data: Any
    model: Any
    loss: Any
    fit: dict[str, Any]
    encode: EncodeConfig
    index: IndexConfig
    mine: MineConfig
    analyze: AnalyzeConfig
    stop: StopConfig
    watch: WatchConfig
    executor: ExecutorConfig

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read and validate a TOML run file. Raises BadInput naming the file, the key and the nearest known one."""
        return cls.read(registry.read_toml(path, "run file", "write one with `pipelines init DATA`."), path)

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> Settings:
        """Validate sections that were read from the file `path`, and look at what they refer to. Raises BadInput.

        A path in a run file is meant from where the file lies.
        """
        from trainer import data, models

        settings = cls.parse(raw, str(path))
        return replace(
            settings,
            data=data.resolved(settings.data, path.parent),
            model=models.resolved(settings.model, path.parent),
            mine=settings.mine.resolved(path.parent),
        )

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str) -> Settings:
        """Validate the sections of a run file. Raises BadInput."""
        known = [*_NAMED, "fit", *_PLAIN]
        for section, value in raw.items():
            if section not in known:
                nearest = difflib.get_close_matches(section, known, 1)
                hint = f"did you mean [{nearest[0]}]?" if nearest else f"known: {', '.join(known)}."
                raise BadInput(f"{where}: [{section}] is not a section; {hint}")
            if not isinstance(value, dict):
                raise BadInput(f"{where}: {section} = {value!r}; write it as a section, [{section}], with keys below.")
        run = _section(RunConfig, raw, "run", where)
        # The number of threads shapes the bits, so it is a setting, never what a machine happens to have.
        fit = {"threads": 1, **raw.get("fit", {})}
        for key in _FROM_RUN:
            if key in fit:
                raise BadInput(f"{where}: fit.{key} is set by [run]; write it there ({'first_epochs, epochs, seed'}).")
        settings = cls(
            run=run,
            data=_named(raw, "data", "emoji", where),
            model=_named(raw, "model", "cnn_gru", where),
            loss=_named(raw, "loss", "aoq", where),
            fit=fit,
            encode=_section(EncodeConfig, raw, "encode", where),
            index=_section(IndexConfig, raw, "index", where),
            mine=_section(MineConfig, raw, "mine", where),
            analyze=_section(AnalyzeConfig, raw, "analyze", where),
            stop=_section(StopConfig, raw, "stop", where),
            watch=_section(WatchConfig, raw, "watch", where),
            executor=_section(ExecutorConfig, raw, "executor", where),
        )
        if settings.fit_config(0, where).threads == 0:
            raise BadInput(f"{where}: fit.threads = 0 gives other bytes on other machines; say how many threads.")
        if settings.stop.overlap is not None and not settings.loss.needs_tables:
            raise BadInput(f"{where}: stop.overlap compares mined tables, and this loss mines none; leave it out.")
        if run.refresh == "async" and not settings.loss.needs_tables:
            raise BadInput(f'{where}: run.refresh = "async" is about mining, and this loss mines none; leave it out.')
        return settings.with_executor(settings.executor, where)

    def with_executor(self, executor: ExecutorConfig, where: str = "run file") -> Settings:
        """The same elsewhere. Raises BadInput where that cannot train in as many processes as [fit] asks for."""
        if self.processes > 1 and executor.kind == "inline":
            raise BadInput(
                f"{where}: fit.processes = {self.processes} needs Ray, and the executor 'inline' is this process "
                "alone; take executor 'ray', or fit.processes = 1."
            )
        return replace(self, executor=executor)

    @property
    def threads(self) -> int:
        """Threads of a fit."""
        return int(self.fit_config(0).threads)

    @property
    def processes(self) -> int:
        """Processes of a fit."""
        return int(self.fit_config(0).processes)

    @property
    def two_stage(self) -> bool:
        """Whether the model scores pairs itself, so that an index finds only candidates."""
        return bool(getattr(self.model, "cross_attention", False))

    def fit_config(self, round: int, where: str = "run file") -> Any:
        """The `FitConfig` of one round. Raises BadInput for a wrong key in [fit]."""
        from trainer.training import FitConfig

        _, epochs = self.run.epochs_of(round)
        filled = {"epochs": epochs, "total_epochs": self.run.scheduled_epochs(round), "seed": self.run.seed}
        return registry.validated(FitConfig, {**self.fit, **filled}, f"{where}: [fit]")

    def dump(self) -> dict[str, Any]:
        """The settings as plain sections that `parse` reads back, defaults written out."""
        sections: dict[str, Any] = {"fit": dict(self.fit)}
        for section in _PLAIN:
            sections[section] = getattr(self, section).model_dump(mode="json")
        for section, key in _NAMED.items():
            config = getattr(self, section)
            name = type(config).__module__.rpartition(".")[2]
            sections[section] = {key: name, **config.model_dump(mode="json")}
        return sections


def _section(config: type[Section], raw: Mapping[str, Any], section: str, where: str) -> Section:
    validated: Section = registry.validated(config, raw.get(section, {}), f"{where}: [{section}]")
    return validated


def _named(raw: Mapping[str, Any], section: str, default: str, where: str) -> Any:
    values = dict(raw.get(section, {}))
    name = values.pop(_NAMED[section], default)
    package = {"data": "trainer.data", "model": "trainer.models", "loss": "trainer.losses"}[section]
    try:
        return registry.configure(package, str(name), values)
    except BadInput as wrong:
        raise BadInput(f"{where}: [{section}] {wrong}") from wrong
