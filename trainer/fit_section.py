"""[fit]: how to train, and the learning rate at a point of training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["WARM", "FitConfig", "learning_rate"]

# Measured on Flickr8k with batches of 128: of five models switched to hardest negatives, those with shares of 0.56 to
# 0.59 in the epoch before learned on, those with 0.74 to 0.89 collapsed, but for SCAN.
WARM = 0.6


class FitConfig(BaseModel):
    """How to train. Epochs are numbered through all rounds; `epochs` is how many this call adds.

    A batch is `batch_size` pairs, or that many images with all their captions for a loss that wants them (smoothap). An
    epoch goes over the data once, or takes `steps_per_epoch` batches: the same budget of updates for any loss.

    `lr` is multiplied by 0.1 from epoch `lr_step` on ("step"), or falls along a cosine to 0 over `total_epochs`
    ("cosine"). `warmup_epochs`: the first epochs of all use every negative instead of the hardest; "auto" is as many as
    it takes until less than `WARM` of the anchors have a batch's hardest negative above their positive, since a model
    that is shown hardest negatives sooner may collapse. Offline negatives wait for the end of warm-up, and for
    `online_epochs` at least. `ema_decay` 0 turns averaging off.
    `neighbourhood` above 1 composes the batches that train on offline negatives from the tables (see
    `trainer.neighbourhoods`): so many pairs come together with each other's negatives, and nothing is encoded beyond
    the batch. 3 are a quintuplet; as many as `batch_size` make the batch one neighbourhood. 1 draws batches at random
    and encodes the negatives in addition.
    `chunk_size` above 0 encodes at most so many images, then texts, at once and drops what their gradients need until
    the backward pass (`trainer.chunks`): the same gradients, an encoder runs forward twice, and a batch can be larger
    than memory. Batch statistics are then a chunk's.
    `processes` train together, sharing out the encoding of every batch: what torchrun started, or in a run on Ray so
    many workers of Ray Train. The model is that of one process, to rounding, so the number shapes the bits.
    `compile` runs both encoders through torch.compile, which takes a while at the start and needs a C++ compiler.
    `weight_decay` above 0 makes Adam AdamW. `threads` 0 leaves torch's choice. `precision` "auto" is bfloat16 on a GPU
    that has it, else float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=20, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    total_epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=2e-4, gt=0)
    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    lr_step: int = Field(default=10, ge=1)
    clip: float = Field(default=2.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    online_epochs: int = Field(default=0, ge=0)
    neighbourhood: int = Field(default=1, ge=1)
    chunk_size: int = Field(default=0, ge=0)
    processes: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    min_count: int = Field(default=1, ge=1, description="a word joins the vocabulary from this many occurrences on")
    threads: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"


def learning_rate(config: FitConfig, epoch: float, total_epochs: int) -> float:
    """At a point of training: `epoch` counts through all rounds and is fractional within one."""
    if config.lr_schedule == "step":
        return config.lr * (0.1 if epoch >= config.lr_step else 1.0)
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(epoch / total_epochs, 1.0)))
    return config.lr
