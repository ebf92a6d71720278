"""The run file: one TOML, one section per owner, every key validated where its owner lives.

[run]       seed, rounds, epochs, ...     (run_section.py)
[data]      format = "emoji", ...         (trainer.data)
[model]     name = "cnn_gru", ...         (trainer.models)
[loss]      name = "aoq", ...             (trainer.losses)
[fit]       batch_size, lr, ...           (trainer.training)
[encode]    shard_rows, batch_size        (here)
[index]     factory, train_sample         (here)
[mine]      k, shard_anchors, recall      (mine_section.py)
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
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from miner.artifacts.errors import BadInput
from pipelines.mine_section import MineConfig
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
