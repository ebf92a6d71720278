"""Settings that losses share, and what they tell `fit` and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from miner.artifacts.ranks import Law, Simans, Softmax
from trainer.similarities import Mask, Reduction, Side

if TYPE_CHECKING:
    from trainer.losses.triplet import Config as Triplet

__all__ = ["OFFLINE", "InBatch", "Loss"]

# Settings of an in-batch loss that mean nothing while there is no table.
OFFLINE = (
    "offline", "offline_weight", "margin_offline", "h_t", "h_v", "skip_t", "skip_v",
    "ranks", "simans_a", "simans_b", "temperature",
)  # fmt: skip
# Settings that one value of `ranks` alone reads.
_READ_BY = {"simans_a": "simans", "simans_b": "simans", "temperature": "temperature"}


class Loss(BaseModel):
    """What every loss has.

    mask           which entries of a batch are negatives: those that do not belong together, or all but the diagonal as
                   the published codes have it
    reduction      over the pairs of a batch; both directions add
    margin_offline margin of the hinges over offline negatives
    h_t, h_v       an offline text is drawn from the first `h_t` of its image's list, an image from the first `h_v`
    skip_t, skip_v after the first `skip_t` (`skip_v`), which are passed over: the hardest of all are likeliest to be
                   unlabelled positives
    ranks          which of these, with formulas and sources in `miner.artifacts.ranks`. All but "tied" draw text and
                   image independently.
                   "tied": evenly, both ranks from one draw, as AOQ published it
                   "untied": evenly
                   "top": always the hardest; `h_t` and `h_v` do not matter
                   "log_uniform": rank r with probability proportional to 1 / (r + 1)
                   "simans": about as similar as the positive, exp(-simans_a (s - s+ - simans_b)^2), where s are the
                   table's scores and s+ its lowest positive
                   "temperature": softmax of s / temperature
    simans_a       how narrow: the bell is 1 / sqrt(2 simans_a) wide in units of score, 50 a tenth. No default: the
                   published 0.5 is for inner products, and all but even among cosines
    simans_b       where its middle is: above the lowest positive by so much
    temperature    in units of score; no default either
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mask: Mask = "valid"
    reduction: Reduction = "sum"
    margin_offline: float = Field(default=0.0, ge=0)
    h_t: int = Field(default=300, ge=1)
    h_v: int = Field(default=60, ge=1)
    skip_t: int = Field(default=0, ge=0)
    skip_v: int = Field(default=0, ge=0)
    ranks: Literal["tied", "untied", "top", "log_uniform", "simans", "temperature"] = "tied"
    simans_a: float | None = Field(default=None, gt=0)
    simans_b: float = 0.0
    temperature: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_law(self) -> Self:
        for name, ranks in _READ_BY.items():
            if self.ranks != ranks and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f'{name} is read with ranks = "{ranks}" alone, but ranks is "{self.ranks}"; leave it out, or '
                    f'set ranks = "{ranks}"'
                )
        if self.ranks == "simans" and self.simans_a is None:
            raise ValueError(
                'ranks = "simans" needs simans_a: the bell around the positive is 1 / sqrt(2 simans_a) wide, in units '
                "of the table's scores; try 50 for cosines"
            )
        if self.ranks == "temperature" and self.temperature is None:
            raise ValueError(
                'ranks = "temperature" needs temperature, in units of the table\'s scores; try 0.05 for cosines'
            )
        if self.ranks in ("log_uniform", "simans", "temperature") and getattr(self, "correction", "") == "stratified":
            raise ValueError(
                'correction = "stratified" takes the negatives of a pool to be drawn evenly, which '
                f'ranks = "{self.ranks}" does not; set ranks = "untied", or leave correction out'
            )
        return self

    @model_serializer(mode="wrap")
    def _read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the settings that this `ranks` does not read, so that they are no part of a stage's inputs."""
        written: dict[str, Any] = dump(self)
        return {name: value for name, value in written.items() if _READ_BY.get(name, self.ranks) == self.ranks}

    @property
    def law(self) -> Law:
        """What `ranks` and its settings mean, as `sampling.draw` takes it."""
        if self.ranks == "simans":
            assert self.simans_a is not None
            return Simans(self.simans_a, self.simans_b)
        if self.ranks == "temperature":
            assert self.temperature is not None
            return Softmax(self.temperature)
        return self.ranks

    @property
    def needs_tables(self) -> bool:
        """Whether it uses offline negatives."""
        return False

    @property
    def needs_partners(self) -> bool:
        """Whether it uses c_2: encoding I* and T* is a third of a quintuplet step."""
        return False

    @property
    def online(self) -> Loss:
        """What remains of it while there is no table."""
        return self

    @property
    def warm_up(self) -> Triplet | None:
        """The all-negatives triplet that stands in during the first epochs: hardest negatives of an untrained model
        are noise. None for a loss that looks at all negatives anyway."""
        return None

    @property
    def batch_by(self) -> Literal["pairs", "images"]:
        """What a batch counts: pairs, or images that come with all their captions."""
        return "pairs"

    def unit(self, side: Side) -> float:
        """The derivative by a score that counts as weight 1 when contributions are compared (`trainer analyze`)."""
        return 1.0 if self.reduction == "sum" else 1.0 / max(len(side.positive), 1)


class InBatch(Loss):
    """A loss over in-batch negatives, on top of which AOQ's offline hinges can be set.

    offline        "OffTri": [g + a_t - p]+ + [g + a_v - p]+ ; "OffQuin": + [g + c_1 - p]+ + [g + c_2 - p]+ as well
                   (g = margin_offline; see aoq), reduced as the loss is
    offline_weight times the offline terms
    """

    offline: Literal["none", "OffTri", "OffQuin"] = "none"
    offline_weight: float = Field(default=1.0, ge=0)

    @property
    def needs_tables(self) -> bool:
        return self.offline != "none"

    @property
    def needs_partners(self) -> bool:
        return self.offline == "OffQuin"

    @property
    def online(self) -> Self:
        """Itself with every offline setting at its default, so that changing one leaves round 0 as it is."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in OFFLINE})

    def all_negatives(self, margin: float) -> Triplet:
        """The all-negatives triplet with this loss's mask and reduction."""
        from trainer.losses.triplet import Config as Triplet

        return Triplet(margin=margin, max_violation=False, mask=self.mask, reduction=self.reduction)
