"""Weights & Biases (`pip install 'quintain[wandb]'`): one run per run folder, resumed after a kill, with figures by
epoch and by round and the settings as its config.

`project`, `entity`; `mode`: "online" or "offline", which keeps files below `folder`, relative to `watch/` in the run
folder, for `wandb sync`. The key is W&B's own variable, WANDB_API_KEY.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipelines.trackers import About, Event, TrackerFailed
from pipelines.trackers._scalars import scalars

__all__ = ["APART", "CLOSING", "Config", "connect"]

APART = True
CLOSING = 30.0  # seconds: what is not sent yet is sent at the end


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = "quintain"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    folder: str = "."


def connect(config: Config, about: About) -> _Run:
    """Raises TrackerFailed without W&B, and what W&B raises."""
    folder = about.place(config.folder, "wandb:folder=")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import wandb
    except ImportError as missing:
        raise TrackerFailed("W&B is not installed: pip install 'quintain[wandb]'") from missing
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        mode=config.mode,
        id=hashlib.sha256(about.run.encode()).hexdigest()[:16],
        # Offline there is nobody to ask whether it is known; `wandb sync --append` puts the parts together.
        resume="allow" if config.mode == "online" else None,
        name=about.run,
        dir=str(folder),
        # The figures and the settings, and nothing else of this machine.
        settings=wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        ),
    )
    run.config.update(dict(about.settings), allow_val_change=True)
    for axis in ("epoch", "round"):
        run.define_metric(f"step/{axis}", hidden=True)
    run.define_metric("epoch/*", step_metric="step/epoch")
    for names in ("round/*", "seconds/*"):
        run.define_metric(names, step_metric="step/round")
    return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run, self._code = run, 1

    def __call__(self, event: Event) -> None:
        told = scalars(event)
        if told is not None:
            self._run.log({f"step/{told.axis}": told.step, **told.values})
        if event.kind == "run_done":
            self._code = 0

    def close(self) -> None:
        self._run.finish(exit_code=self._code)
