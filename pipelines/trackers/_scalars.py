"""Which numbers of an event a tracker with curves keeps, under which names, at which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.trackers import Event

__all__ = ["Scalars", "scalars"]


@dataclass(frozen=True)
class Scalars:
    """`values` by name (`epoch/loss`, `round/dev/rsum`, `seconds/mine-i2t`) at a step of `axis`."""

    axis: str
    step: int
    values: Mapping[str, float]


def scalars(event: Event) -> Scalars | None:
    """None for what is no point of a curve. What was told before a kill is not told again, so nothing counts twice."""
    if event.again:
        return None
    if event.kind == "epoch" and event.step is not None:
        return Scalars("epoch", event.step, _of("epoch", event))
    if event.kind == "round_done" and event.round is not None:
        return Scalars("round", event.round, _of("round", event))
    if event.kind == "stage_done" and event.round is not None and event.seconds is not None:
        return Scalars("round", event.round, {f"seconds/{event.stage}": event.seconds, **_of("round", event)})
    return None


def _of(axis: str, event: Event) -> dict[str, float]:
    return {f"{axis}/{name}": value for name, value in event.figures.items()}
