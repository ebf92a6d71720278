"""The rules of [stop], which end a run before its last round. Pure.

A rule is asked anew in every plan, of what is committed, and its answer is stored nowhere: a resumed run and another
machine decide alike, and with other limits the same run goes on. Only the budget depends on what was spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Rule", "Stop", "StopConfig", "best_of", "decide"]

Rule = Literal["patience", "overlap", "gpu_hours"]


class StopConfig(BaseModel):
    """No further round is begun once one of these holds.

    `patience`: so many rounds, one after the other, in which the dev set's rsum did not rise above the best before by
    more than `min_delta` (in points of rsum). `overlap`: of each direction's negatives at least this share is the round
    before's. `gpu_hours`: hours of stages times the GPUs that worked on them; a stage that runs where no GPU is counts
    as on one. What a killed stage did after its last epoch is not counted. Round 0 is always finished, and a model that
    is trained is always evaluated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    overlap: float | None = Field(default=None, gt=0, le=1)
    gpu_hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.min_delta and self.patience is None:
            raise ValueError("min_delta does nothing without patience; set patience as well, or leave it out")
        return self


@dataclass(frozen=True)
class Stop:
    """`round` is the last one that is done."""

    round: int
    rule: Rule
    why: str

    def __str__(self) -> str:
        return f"stopped after round {self.round}: {self.why}"


def best_of(rsums: Sequence[float]) -> int | None:
    """The round with the highest dev rsum, the first of equal ones; None without a round."""
    return max(range(len(rsums)), key=lambda round: (rsums[round], -round), default=None)


def decide(
    config: StopConfig,
    rounds: int,
    rsums: Sequence[float],
    overlap: Callable[[int], float | None],
    fitted: int,
    hours: Callable[[], float],
) -> Stop | None:
    """Which rule ends a run of `rounds` mined rounds first, and after which of them; None while none does.

    `rsums`: dev rsum of the rounds that are evaluated, from round 0 on. `overlap` of a round: the least share of a
    direction's negatives that the round before had, None without tables. `fitted`: the last round whose model, like
    all before it, is trained. `overlap` and `hours` are asked only if a rule needs them.
    """
    best, since = 0, 0
    for round, rsum in enumerate(rsums[:rounds]):
        if round and rsum - rsums[best] > config.min_delta:
            since = 0
        elif round:
            since += 1
        if since == 0:
            best = round
        if config.patience is not None and since >= config.patience:
            by = f" by more than {config.min_delta:g}" if config.min_delta else ""
            return Stop(
                round,
                "patience",
                f"dev rsum did not rise{by} in {since} round{'s' if since > 1 else ''} "
                f"({rsum:.1f}, after {rsums[best]:.1f} in round {best}; [stop] patience = {config.patience})",
            )
        share = overlap(round) if config.overlap is not None and round else None
        if config.overlap is not None and share is not None and share >= config.overlap:
            return Stop(
                round,
                "overlap",
                f"its tables share at least {100 * share:.1f}% of their negatives with round {round - 1}'s "
                f"([stop] overlap = {config.overlap:g})",
            )
    if config.gpu_hours is not None and fitted < rounds and (spent := hours()) >= config.gpu_hours:
        return Stop(
            max(fitted, 0), "gpu_hours", f"{spent:.2f} GPU-hours are spent ([stop] gpu_hours = {config.gpu_hours:g})"
        )
    return None
