"""TensorBoard event files: figures by epoch and by round, seconds of stages; `tensorboard --logdir RUN/watch`.

`folder`: relative to `watch/` in the run folder.
"""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.trackers import About, Event, TrackerFailed
from pipelines.trackers._scalars import scalars

__all__ = ["Config", "connect"]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = "tensorboard"


def connect(config: Config, about: About) -> _TensorBoard:
    """Raises TrackerFailed without a writer of event files."""
    folder = about.place(config.folder, "tensorboard:folder=")
    try:
        from tensorboardX import SummaryWriter
    except ImportError as missing:
        raise TrackerFailed("tensorboardX is not installed: pip install 'quintain[loop]'") from missing
    # The library names a file by the second, and empties one that is there.
    writer = SummaryWriter(str(folder), filename_suffix=f".{secrets.token_hex(4)}")
    writer.add_text("settings", "\n".join(f"    {name} = {value}" for name, value in about.settings.items()), 0)
    return _TensorBoard(writer)


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, event: Event) -> None:
        told = scalars(event)
        if told is None:
            return
        for name, value in told.values.items():
            self._writer.add_scalar(name, value, told.step, walltime=event.time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
