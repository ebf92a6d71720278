"""Run all members of a comparison through one executor, several at a time, each artifact once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from miner.artifacts.errors import BadInput, QuintainError
from miner.artifacts.manifest import Manifest, find_artifact
from miner.artifacts.store import Store
from pipelines.branches import Here
from pipelines.compare.comparison import Member
from pipelines.executors import Executor
from pipelines.jobs import settings_json
from pipelines.loop import execute, tidy
from pipelines.places import guarded
from pipelines.plan import Step, plan
from pipelines.progress import Progress
from pipelines.stages import Data, declare

__all__ = ["Outcome", "Plans", "run_members"]


class Plans:
    """Plans of all members over one folder. Manifests never change once written, so each is read once."""

    def __init__(self, members: Sequence[Member], data: Data, store: Store) -> None:
        self.members, self.store = members, store
        self._stages = [[s for s in declare(m.settings, data) if s.work != "report"] for m in members]
        self._present: dict[str, dict[str, Manifest]] = {}
        self._steps: dict[int, list[Step]] = {}
        self._finished: set[int] = set()

    def steps(self) -> list[list[Step]]:
        """The steps of every member as things stand. Raises DamagedArtifact for a broken manifest."""
        for folder in {stage.folder for stages in self._stages for stage in stages}:
            known = self._present.setdefault(folder, {})
            for key in self.store.names(folder):
                if key not in known:
                    artifact = find_artifact(self.store, f"{folder}/{key}")
                    if artifact is not None:
                        known[key] = artifact.manifest
        for number, stages in enumerate(self._stages):
            if number not in self._finished:
                steps = plan(stages, self._present)
                self._steps[number] = steps
                if all(step.state == "done" for step in steps):
                    self._finished.add(number)
        return [self._steps[number] for number in range(len(self._stages))]

    @property
    def num_stages(self) -> int:
        return sum(len(stages) for stages in self._stages)


@dataclass(frozen=True)
class Outcome:
    """The steps of every member, and for each member that cannot go on, by its number, the reason in a sentence."""

    steps: list[list[Step]]
    failed: dict[int, str] = field(default_factory=dict)


def run_members(
    plans: Plans, executor: Executor, progress: Progress, check: Callable[[], None] = lambda: None
) -> Outcome:
    """Do everything that is not done, `executor.parallel` stages at a time.

    What is wrong with one objective (a loss that is no longer finite) ends its members, not the others. Anything else
    is raised, with the name of the member and the stage, once the stages at work are finished; an interrupt at once.
    `check` is as in `loop.run`.
    """
    store = guarded(plans.store, check)
    store.sweep("")
    for step in {step.prefix: step for steps in plans.steps() for step in steps if step.state == "done"}.values():
        tidy(step, store)
    texts = [settings_json(member.settings) for member in plans.members]
    shared = _Shared(progress, plans)
    failed: dict[int, str] = {}
    running: dict[Future[Manifest], tuple[str, Step]] = {}
    pool: Pool = ThreadPoolExecutor(executor.parallel) if executor.parallel > 1 else Here()
    try:
        while True:
            every = plans.steps()
            shared.show(every)
            for number, step in _ready(every, failed):
                if len(running) >= executor.parallel:
                    break
                if step.prefix not in [at_work.prefix for _, at_work in running.values()]:
                    name = f"{plans.members[number].name}: {step.stage.name}"
                    quiet = _Quiet(shared, name, step.stage.work)
                    future = pool.submit(execute, step, every[number], texts[number], store, executor, quiet, check)
                    running[future] = name, step
            if not running:
                return Outcome(every, failed)
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                name, step = running.pop(future)
                try:
                    future.result()
                except QuintainError as wrong:
                    _fail(wrong, name, step, every, failed)
    finally:
        # After an interrupt the executor is closed next, which ends what is still at work.
        pool.shutdown(wait=sys.exc_info()[0] is not KeyboardInterrupt, cancel_futures=True)


def _ready(every: list[list[Step]], failed: dict[int, str]) -> Iterator[tuple[int, Step]]:
    """(member, step) of everything that could be done now."""
    for number, steps in enumerate(every):
        if number not in failed:
            yield from ((number, step) for step in steps if step.state in ("missing", "stale"))


def _fail(wrong: QuintainError, name: str, step: Step, every: list[list[Step]], failed: dict[int, str]) -> None:
    """Note the members that need `step`; raise what is not their objective's fault."""
    if not isinstance(wrong, BadInput):
        raise type(wrong)(f"{name}: {wrong}") from wrong
    for number, steps in enumerate(every):
        if any(other.state != "waiting" and other.prefix == step.prefix for other in steps):
            failed[number] = f"{step.stage.name}: {wrong}"


@dataclass
class _Shared:
    """One bar for all members, counting stages; each stage that shapes the result leaves a line."""

    progress: Progress
    plans: Plans

    def __post_init__(self) -> None:
        self.lock = Lock()
        count = len(self.plans.members)
        self.progress.start("compare", self.plans.num_stages, "stage", f"{count} members")

    def show(self, every: list[list[Step]]) -> None:
        with self.lock:
            self.progress.advance(sum(step.state == "done" for steps in every for step in steps))

    def say(self, line: str) -> None:
        with self.lock:
            self.progress.say(line)


@dataclass(frozen=True)
class _Quiet:
    """Progress of one stage among many: only a fit's end and warnings are said."""

    shared: _Shared
    name: str
    work: str

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        pass

    def advance(self, done: int, note: str = "") -> None:
        pass

    def epoch(self, line: dict[str, Any]) -> None:
        if line["warning"]:
            self.say(f"{self.name}: warning, epoch {line['epoch']}: {line['warning']}")

    def finish(self, seconds: float, note: str = "") -> None:
        if self.work == "fit":
            self.say(f"{self.name}: done in {seconds:.1f} s {note}".rstrip())

    def say(self, line: str) -> None:
        self.shared.say(line)

    def close(self) -> None:
        pass
