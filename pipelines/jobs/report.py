"""Write the page that shows what was mined."""

from __future__ import annotations

from miner.artifacts.manifest import Artifact, FileRecord
from pipelines.jobs import Task

__all__ = ["ReportJob"]


class ReportJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("a page is written in one piece")

    def finish(self) -> Artifact:
        from pipelines.loop import saved_data, steps_of
        from pipelines.report import PAGE, render
        from pipelines.report.of_run import run_view

        settings, store = self.task.settings, self.task.draft.store
        dataset = self.task.dataset("train")
        data = saved_data(store)
        assert data is not None
        # Rounds past this one may be there, from before a rule of [stop]; their figures are not on this page.
        steps = [s for s in steps_of(settings, data, store, lifted=True) if s.stage.round <= self.task.stage.round]
        page = render(run_view(store, settings, steps, dataset))
        record = self.task.draft.add(PAGE, page.encode("utf-8", "replace"))
        return self.task.draft.commit({PAGE: record}, {})
