"""What the steps of an epoch read: batches at random or composed from the tables, each with its offline negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction
from trainer import sampling
from trainer.chunks import WHOLE, Division
from trainer.fit_section import FitConfig
from trainer.neighbourhoods import Neighbourhoods
from trainer.prefetch import Ahead
from trainer.scoring import Gathered, Inputs, gather

__all__ = ["steps_of"]

Rows = npt.NDArray[np.int64]


def steps_of(
    inputs: Inputs,
    loss: Any,
    config: FitConfig,
    tables: Mapping[Direction, sampling.Table] | None,
    epoch: int,
    division: Division = WHOLE,
    *,
    pinned: bool = False,
) -> tuple[int, Ahead[Gathered]]:
    """How many steps an epoch has, and what each of them reads, made ahead; without `tables`, no offline negatives.

    Only what this process encodes by `division` is read; `pinned`, into memory that copies to a GPU quickly.
    """
    pairs, by = inputs.dataset.pairs, loss.batch_by
    size, seed, steps = config.batch_size, config.seed, config.steps_per_epoch

    def read(
        batch: Rows, drawn: sampling.Draw | None = None, passed_over: npt.NDArray[np.bool_] | None = None
    ) -> Gathered:
        found = gather(inputs, batch, drawn, by, passed_over, division)
        return found.pinned() if pinned else found

    if tables is None:
        plan = sampling.batches(pairs, size, seed, epoch, by, steps)
        return len(plan), Ahead(read, plan)
    how: dict[str, Any] = {
        "pool_text": loss.h_t,
        "pool_image": loss.h_v,
        "skip_text": loss.skip_t,
        "skip_image": loss.skip_v,
        "ranks": loss.law,
    }
    if config.neighbourhood == 1:
        plan = sampling.batches(pairs, size, seed, epoch, by, steps)
        drawn = sampling.draw(pairs, tables, **how, seed=seed, epoch=epoch, partners=loss.needs_partners)
        return len(plan), Ahead(lambda batch: read(batch, drawn.take(batch)), plan)
    close = Neighbourhoods(pairs, tables, config.neighbourhood, **how)

    def composed(item: tuple[int, Rows]) -> Gathered:
        step, batch = item
        return read(batch, close.draw(batch, seed, epoch, step), close.passed_over(batch))

    return sampling.num_batches(pairs, size, steps), Ahead(composed, enumerate(close.batches(size, seed, epoch, steps)))
