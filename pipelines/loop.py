"""plan -> execute -> plan again, until nothing is left to do. No ray here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from functools import partial
from typing import get_args

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import MANIFEST, Draft, Manifest, canonical_json, find_artifact
from miner.artifacts.pairs import PAIRS, Side, commit_pairs
from miner.artifacts.sealed import sealed, unsealed
from miner.artifacts.store import Store
from pipelines.branches import Branches
from pipelines.evidence import stop_of, table_figures
from pipelines.executors import Executor
from pipelines.jobs import Task, settings_json
from pipelines.kept_verdicts import keep_verdicts
from pipelines.log import LOG
from pipelines.places import guarded
from pipelines.plan import KEY_DIGITS, Step, plan, ready
from pipelines.progress import Progress
from pipelines.settings import Settings
from pipelines.stages import Data, Stage, declare
from pipelines.told import Told, tell_failure, tell_round
from pipelines.trackers._watch import Watch
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
    ranked = max((splits[split].pairs.num_images, splits[split].pairs.num_texts) for split in ("dev", "test"))
    return Data(fingerprints, pairs.num_images, pairs.num_texts, pairs.num_pairs, weights, elements, ranked)


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
    if saved is None or saved == data:
        keep_verdicts(settings, store)
    if saved is None:
        about = {key: value for key, value in asdict(data).items() if key not in ("weights", "elements", "ranked")}
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


def present(
    stages: list[Stage], store: Store, known: Mapping[str, dict[str, Manifest]] | None = None
) -> dict[str, dict[str, Manifest]]:
    """Every committed manifest below the stages' folders, but for folders that are `known`.

    Raises DamagedArtifact for one that is broken.
    """
    found = dict(known or {})
    for folder in {stage.folder for stage in stages} - set(found):
        found[folder] = {}
        for key in store.names(folder):
            artifact = find_artifact(store, f"{folder}/{key}")
            if artifact is not None:
                found[folder][key] = artifact.manifest
    return found


def steps_of(settings: Settings, data: Data, store: Store, *, lifted: bool = False) -> list[Step]:
    """The plan as things stand: up to the round after which a rule of [stop] ends the run, or with the rules `lifted`
    all of it. Raises DamagedArtifact."""
    stages = declare(settings, data)
    found = present(stages, store)
    return plan(stages, found) if lifted else _steps(settings, data, store, found)[0]


def _steps(
    settings: Settings, data: Data, store: Store, known: dict[str, dict[str, Manifest]]
) -> tuple[list[Step], dict[str, dict[str, Manifest]]]:
    """The plan, and the manifests it was made from: those `known`, and what a stopped run has besides (its page)."""
    steps = plan(declare(settings, data), known)
    stop = stop_of(settings, steps, store)
    if stop is None:
        return steps, known
    stages = declare(settings, data, stop.round)
    found = present(stages, store, known)
    return plan(stages, found), found


def run(
    settings: Settings,
    data: Data,
    store: Store,
    executor: Executor,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
) -> list[Step]:
    """Do everything that is not done. A second call does nothing; a call after a kill finishes the job.

    With refresh = "async", and an executor that can, a round is trained while its tables are mined for the next. When
    one of these fails, the stage that is at work in the other is finished, and then the error is raised.

    `check` is called before and after every stage, and before whatever this process writes into an object store; it
    raises when this run must stop (see `places.only_writer`). `watch` is told what happens; rounds that were finished
    before are told `again`.
    """
    watch = watch or Watch()
    encoded, store = settings_json(settings), guarded(store, check)
    store.sweep("")
    found = present(declare(settings, data), store)
    steps, found = _steps(settings, data, store, found)
    for earlier in steps:
        tidy(earlier, store)
    new: set[str] = set()
    for round in sorted(_finished(steps)):
        tell_round(settings, steps, round, store, watch, again=True)
    failure: Exception | None = None
    with Branches(executor.branches if settings.run.refresh == "async" else 1, executor.give_up) as branches:
        while True:
            begin: list[Step] = []
            if failure is None:
                steps, found = _steps(settings, data, store, found)
                begin = ready(steps, branches.at_work, branches.most)
            if not begin and not branches.at_work:
                # A worker that was given up as lost may have written its part after others had put theirs together.
                for late in steps:
                    if late.stage.name in new:
                        tidy(late, store)
                return steps
            if not any(step.stage.branch == "refresh" for step in (*begin, *branches.at_work)):
                executor.rest()
            for step in begin:
                new.add(step.stage.name)
                own = progress if branches.most == 1 else copy(progress)  # a stage's place on the same screen
                work = (step, steps, encoded, store, executor, own, check, watch)
                branches.begin(step, partial(execute, *work))
            already = _finished(steps)
            for step, future in branches.ended():
                try:
                    made = future.result()
                except Exception as failed:  # whatever it is, those who watch are told before it goes on its way
                    failure = failure or failed
                    tell_failure(step, failed, branches.at_work, store, progress, watch)
                    continue
                # Nobody else writes here: what was there is not asked for again, which is hundreds of requests in a
                # bucket.
                found.setdefault(step.stage.folder, {})[made.input_key[:KEY_DIGITS]] = made
            now = plan([s.stage for s in steps], found)
            for round in sorted(_finished(now) - already):
                tell_round(settings, now, round, store, watch)
            if failure is not None and not branches.at_work:
                raise failure


def _finished(steps: Sequence[Step]) -> set[int]:
    """Rounds of which everything is done; the page is of all of them."""
    open_ = {step.stage.round for step in steps if step.state != "done" and step.stage.work != "report"}
    return {step.stage.round for step in steps} - open_


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
    watch: Watch | None = None,
) -> Manifest:
    """Do one step whose parents are done, and write its seconds and its epochs' to the log."""
    check()
    stage = step.stage
    where = {s.stage.name: s for s in steps}
    parents = tuple((role, where[name].prefix) for role, name in stage.parents)
    draft = Draft(store, step.prefix, stage.kind, dict(step.inputs or {}))
    store.sweep(step.prefix)
    task = Task(stage, draft, parents, encoded)
    before = task.settings.run.epochs_before(stage.round)
    told = Told(progress, store, watch or Watch(), stage, step.prefix, executor.gpus_of(task), before)
    told.begin(step.why, table_figures(task.settings, steps, store, stage.round) if stage.work == "fit" else {})
    began = time.monotonic()
    made = executor.execute(task, told)
    seconds = time.monotonic() - began
    check()
    told.end(seconds, made.manifest)
    return made.manifest
