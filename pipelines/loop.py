"""plan -> execute -> plan again, until nothing is left to do. No ray here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import MANIFEST, Draft, Manifest, canonical_json, find_artifact
from miner.artifacts.pairs import PAIRS, Side, commit_pairs
from miner.artifacts.sealed import sealed, unsealed
from miner.artifacts.store import Store
from pipelines import log
from pipelines.executors import Executor
from pipelines.jobs import Task, settings_json
from pipelines.log import LOG
from pipelines.places import guarded
from pipelines.plan import KEY_DIGITS, Step, plan
from pipelines.progress import Progress
from pipelines.settings import Settings
from pipelines.stages import Data, Stage, declare
from trainer.data import Split

__all__ = [
    "LOG", "SETTINGS", "describe", "execute", "keep", "prepare", "prepare_data", "present", "run", "saved_data",
    "saved_settings", "steps_of", "tidy",
]  # fmt: skip

SETTINGS = "settings.json"


def describe(settings: Settings) -> Data:
    """Read the data the settings name. Raises BadInput when it is wrong, or does not fit the model."""
    from trainer import models
    from trainer.data import load

    splits = {split: load(settings.data, split) for split in get_args(Split)}
    pairs = splits["train"].pairs
    fingerprints = {split: dataset.fingerprint for split, dataset in splits.items()}
    tokenizer = models.tokenizer_of(settings.model, pairs.texts, settings.fit_config(0).min_count)
    model = models.build(settings.model, tokenizer, splits["train"].image_shape)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    shape = splits["train"].image_shape
    elements: dict[Side, float] = {
        "image": shape[0] if len(shape) == 2 else 1,
        "text": float(tokenizer.encode(pairs.texts)[1].mean()),
    }
    return Data(fingerprints, pairs.num_images, pairs.num_texts, pairs.num_pairs, weights, elements)


def saved_data(store: Store) -> Data | None:
    """What the run in this folder was started on; None before it has started. Raises BadInput if one cannot tell."""
    found = find_artifact(store, PAIRS)
    if found is None:
        return None
    try:
        return Data(**found.manifest.inputs)
    except TypeError as other:
        raise BadInput(f"{store.url}: another version of quintain made this run folder; choose another one.") from other


def prepare(settings: Settings, data: Data, store: Store) -> None:
    """Write down which data and settings this run folder is for. Raises BadInput if it is another data set's."""
    prepare_data(settings, data, store)
    keep(store, SETTINGS, canonical_json(sealed(settings.dump())))


def keep(store: Store, name: str, data: bytes) -> None:
    """Write what is no artifact, unless it is there already, the same."""
    try:
        if store.read(name) == data:
            return
    except FileNotFoundError:
        pass
    store.write(name, data)


def prepare_data(settings: Settings, data: Data, store: Store) -> None:
    """Write down which data this folder is for. Raises BadInput if it is another data set's."""
    from trainer.data import load

    saved = saved_data(store)
    if saved is None:
        about = {key: value for key, value in asdict(data).items() if key not in ("weights", "elements")}
        commit_pairs(Draft(store, PAIRS, PAIRS, about), load(settings.data, "train").pairs, {})
    elif saved != data:
        changed = [split for split in data.fingerprints if data.fingerprints[split] != saved.fingerprints[split]]
        raise BadInput(
            f"{store.url}: this run folder belongs to another data set ({', '.join(changed)} differ: it holds "
            f"{saved.num_images} images and {saved.num_texts} texts, the run file names {data.num_images} and "
            f"{data.num_texts}); nothing was touched: choose another folder."
        )


def saved_settings(store: Store) -> Settings:
    """The settings of the last `run` in this folder. Raises BadInput when there was none, DamagedArtifact when they are
    not what was written: to `gc`, fewer rounds would mean that the others can go."""
    try:
        found = store.read(SETTINGS)
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise BadInput(
            f"{store.url}: no run here; `pipelines run RUN_FILE --run-dir {store.url}` starts one."
        ) from missing
    try:
        raw = unsealed(json.loads(found))
    except ValueError as broken:
        raise DamagedArtifact(
            f"{store.url}/{SETTINGS}: not the settings that were written ({broken}); run the same `pipelines run` "
            "again, which writes them anew."
        ) from broken
    return Settings.parse(raw, f"{store.url}/{SETTINGS}")


def present(stages: list[Stage], store: Store) -> dict[str, dict[str, Manifest]]:
    """Every committed manifest below the stages' folders. Raises DamagedArtifact for one that is broken."""
    found: dict[str, dict[str, Manifest]] = {}
    for folder in {stage.folder for stage in stages}:
        for key in store.names(folder):
            artifact = find_artifact(store, f"{folder}/{key}")
            if artifact is not None:
                found.setdefault(folder, {})[key] = artifact.manifest
    return found


def steps_of(settings: Settings, data: Data, store: Store) -> list[Step]:
    """The plan as things stand."""
    stages = declare(settings, data)
    return plan(stages, present(stages, store))


def run(
    settings: Settings,
    data: Data,
    store: Store,
    executor: Executor,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> list[Step]:
    """Do everything that is not done. A second call does nothing; a call after a kill finishes the job.

    `check` is called before and after every stage, and before whatever this process writes into an object store; it
    raises when this run must stop (see `places.only_writer`).
    """
    encoded, store = settings_json(settings), guarded(store, check)
    store.sweep("")
    stages = declare(settings, data)
    found = present(stages, store)
    for earlier in plan(stages, found):
        tidy(earlier, store)
    while True:
        steps = plan(stages, found)
        step = next((s for s in steps if s.state in ("missing", "stale")), None)
        if step is None:
            return steps
        made = execute(step, steps, encoded, store, executor, progress, check)
        # Nobody else writes here: what was there is not asked for again, which is hundreds of requests in a bucket.
        found.setdefault(step.stage.folder, {})[made.input_key[:KEY_DIGITS]] = made


def tidy(step: Step, store: Store) -> None:
    """Delete what a killed writer left beside a committed artifact: parts, epoch files, scratch."""
    if step.manifest is None:
        return
    store.sweep(step.prefix)
    for name in store.names(step.prefix):
        if name != MANIFEST and name not in step.manifest.files:
            store.remove(f"{step.prefix}/{name}")


def execute(
    step: Step,
    steps: list[Step],
    encoded: str,
    store: Store,
    executor: Executor,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Do one step whose parents are done, and write its seconds and its epochs' to the log."""
    check()
    stage = step.stage
    where = {s.stage.name: s for s in steps}
    parents = tuple((role, where[name].prefix) for role, name in stage.parents)
    draft = Draft(store, step.prefix, stage.kind, dict(step.inputs or {}))
    store.sweep(step.prefix)
    progress.start(stage.name, stage.parts, stage.unit, step.why)
    began = time.monotonic()
    told = _Log(store, stage.name, step.prefix)
    told("start")
    made = executor.execute(Task(stage, draft, parents, encoded), _Logged(progress, told))
    seconds = time.monotonic() - began
    check()
    told("done", seconds=round(seconds, 3))
    progress.finish(seconds)
    return made.manifest


@dataclass(frozen=True)
class _Log:
    """Appends one line per event of a stage to the run's log."""

    store: Store
    stage: str
    prefix: str

    def __call__(self, event: str, **about: Any) -> None:
        line = {"stage": self.stage, "prefix": self.prefix, "event": event, "time": time.time(), **about}
        log.append(self.store, line)

    def has_epoch(self, epoch: int) -> bool:
        """Whether the log has this artifact's line of an epoch."""
        wanted = (self.prefix, "epoch", epoch)
        return any((line["prefix"], line.get("event"), line.get("epoch")) == wanted for line in log.lines(self.store))


@dataclass(frozen=True)
class _Logged:
    """A progress that also writes how long each epoch took."""

    progress: Progress
    log: _Log

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        self.progress.start(name, total, unit, why)

    def advance(self, done: int, note: str = "") -> None:
        self.progress.advance(done, note)

    def epoch(self, line: dict[str, Any]) -> None:
        # A resumed epoch has its line, unless the process died after the epoch's file and before its line.
        if not line["resumed"] or not self.log.has_epoch(line["epoch"]):
            self.log(
                "epoch",
                **{key: line[key] for key in ("epoch", "seconds", "waited", "steps", "pairs_per_second", "device")},
            )
        self.progress.epoch(line)

    def finish(self, seconds: float, note: str = "") -> None:
        self.progress.finish(seconds, note)

    def say(self, line: str) -> None:
        self.progress.say(line)

    def close(self) -> None:
        self.progress.close()
