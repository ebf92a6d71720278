"""[run]: how many rounds and epochs, and whether training waits for mining."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RunConfig"]


class RunConfig(BaseModel):
    """Round 0 trains `first_epochs` on online negatives; each of `rounds` mines and then trains `epochs` more.

    With `restart`, every mined round trains a new model for `epochs`, on negatives that the model of the round before
    found: with one round, the experiment of the AOQ paper.

    With `refresh` = "async", training does not wait for mining: while a round trains, on the tables of the round
    before, its own are mined from the model it began with, for the round after. Rounds 1 and 2 share tables, and the
    last round mines none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=3, ge=0)
    first_epochs: int = Field(default=5, ge=1)
    epochs: int = Field(default=5, ge=1)
    restart: bool = False
    # Left out where it is what it always was, so that no older page is stale.
    refresh: Literal["sync", "async"] = Field(default="sync", exclude_if=lambda refresh: refresh == "sync")

    @model_validator(mode="after")
    def _overlaps(self) -> Self:
        if self.refresh == "async" and self.restart:
            raise ValueError(
                'refresh = "async" trains on while tables are mined, and restart = true begins every round anew from '
                "those tables; leave one of them out"
            )
        if self.refresh == "async" and self.rounds < 2:
            raise ValueError(
                f'refresh = "async" mines while round 2 and later ones are trained, and rounds = {self.rounds}; set '
                "it to 2 or more, or leave refresh out"
            )
        return self

    def tables_of(self, round: int) -> int:
        """The round whose tables a round from 1 on trains on."""
        return round if self.refresh == "sync" else max(1, round - 1)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run."""
        return self.first_epochs + self.rounds * self.epochs

    def epochs_of(self, round: int) -> tuple[int, int]:
        """(first epoch, number of epochs) of a round; the first epoch counts from when its model was new."""
        return (0 if self.restart else self.epochs_before(round)), self.epochs if round else self.first_epochs

    def epochs_before(self, round: int) -> int:
        """Epochs of all the rounds before."""
        return self.first_epochs + (round - 1) * self.epochs if round else 0

    def scheduled_epochs(self, round: int) -> int:
        """Epochs over which the learning rate of a round's model is scheduled."""
        return self.epochs_of(round)[1] if self.restart else self.total_epochs
