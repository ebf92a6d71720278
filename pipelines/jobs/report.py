"""Write the page that shows what was mined."""

from __future__ import annotations

from miner.artifacts.manifest import Artifact, FileRecord
from pipelines.jobs import Task
from pipelines.stages import SHAPES_NOTHING

__all__ = ["PAGE", "ReportJob"]

PAGE = "report.html"


class ReportJob:
    def __init__(self, task: Task) -> None:
        self.task = task

    def part(self, index: int) -> FileRecord:
        raise AssertionError("a page is written in one piece")

    def finish(self) -> Artifact:
        from pipelines.loop import saved_data, steps_of
        from pipelines.report import render
        from pipelines.summary import round_views

        settings, store = self.task.settings, self.task.draft.store
        dataset = self.task.dataset("train")
        data = saved_data(store)
        assert data is not None
        # Rounds past this one may be there, from before a rule of [stop]; their figures are not on this page.
        steps = [s for s in steps_of(settings, data, store, lifted=True) if s.stage.round <= self.task.stage.round]
        views = round_views(steps, store, dataset.pairs)
        shown = {name: section for name, section in settings.dump().items() if name not in SHAPES_NOTHING}
        page = render(dataset, views, title=f"quintain: {dataset.name}", settings=shown, seed=settings.run.seed)
        record = self.task.draft.add(PAGE, page.encode())
        return self.task.draft.commit({PAGE: record}, {})
