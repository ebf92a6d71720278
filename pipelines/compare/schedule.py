"""Run all members of a comparison through one executor, several at a time, each artifact once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any

from miner.artifacts.manifest import Manifest, find_artifact
from miner.artifacts.store import LocalStore
from pipelines.compare import Member
from pipelines.executors import Executor
from pipelines.jobs import settings_json
from pipelines.loop import execute
from pipelines.plan import Step, plan
from pipelines.progress import Progress
from pipelines.stages import Data, Stage, declare

__all__ = ["Plans", "run_members"]


class Plans:
    """Plans of all members over one folder. Manifests never change once written, so each is read once."""

    def __init__(self, members: Sequence[Member], data: Data, store: LocalStore) -> None:
        self.members, self.store = members, store
        self._stages = [[s for s in declare(m.settings, data) if s.work != "report"] for m in members]
        self._present: dict[str, dict[str, Manifest]] = {}

    def steps(self) -> list[list[Step]]:
        """The steps of every member as things stand. Raises DamagedArtifact for a broken manifest."""
        for folder in {stage.folder for stages in self._stages for stage in stages}:
            known = self._present.setdefault(folder, {})
            for key in self.store.names(folder):
                if key not in known:
                    artifact = find_artifact(self.store, f"{folder}/{key}")
                    if artifact is not None:
                        known[key] = artifact.manifest
        return [plan(stages, self._present) for stages in self._stages]

    @property
    def num_stages(self) -> int:
        return sum(len(stages) for stages in self._stages)


def run_members(plans: Plans, executor: Executor, progress: Progress) -> list[list[Step]]:
    """Do everything that is not done, `executor.parallel` stages at a time. Raises what a stage raises.

    On an error the stages at work are finished first, so that nothing is lost.
    """
    store = plans.store
    store.sweep("")
    texts = [settings_json(member.settings) for member in plans.members]
    shared = _Shared(progress, plans)
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(executor.parallel) as pool:
        while True:
            every = plans.steps()
            shared.show(every)
            for member, text, steps in zip(plans.members, texts, every, strict=True):
                for step in steps:
                    if len(running) >= executor.parallel:
                        break
                    if step.state in ("missing", "stale") and step.prefix not in running.values():
                        quiet = _Quiet(shared, f"{member.name}: {step.stage.name}")
                        future = pool.submit(execute, step, steps, text, store, executor, quiet)
                        running[future] = step.prefix
            if not running:
                return every
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
            for future in done:
                future.result()


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
    """Progress of one stage among many: only its end and its warnings are said."""

    shared: _Shared
    name: str

    def start(self, name: str, total: int, unit: str, why: str) -> None:
        pass

    def advance(self, done: int, note: str = "") -> None:
        pass

    def epoch(self, line: dict[str, Any]) -> None:
        if line["warning"]:
            self.say(f"{self.name}: warning, epoch {line['epoch']}: {line['warning']}")

    def finish(self, seconds: float, note: str = "") -> None:
        if "/fit" in self.name:
            self.say(f"{self.name}: done in {seconds:.1f} s {note}".rstrip())

    def say(self, line: str) -> None:
        self.shared.say(line)

    def close(self) -> None:
        pass


def of_work(steps: Sequence[Step], work: str) -> list[Step]:
    """The steps of one kind of work, by round."""
    return sorted((step for step in steps if step.stage.work == work), key=lambda step: _round(step.stage))


def _round(stage: Stage) -> int:
    return stage.round
