"""NT-Xent: softmax over the batch at temperature tau, as in Bleeker & de Rijke (ECIR 2022, arXiv 2202.07474).

    L = 1/2 mean_i CE(S_i. / tau, i) + 1/2 mean_j CE(S_.j / tau, j)

With `mask="valid"` the other positives of an anchor leave the denominator; with "diagonal" they stay, as published.

`offline="softmax"` appends each pair's offline hard negative to its anchor's softmax, its exponential times
`offline_weight`. What that does to the estimate of
the full softmax depends on `correction`:

    none        as one more candidate: a hard negative is heard as loudly as an in-batch one, though it stands for a
                small pool. Biased towards hard negatives on purpose, as in dense passage retrieval.
    stratified  the offline negative stands for its pool, the n in-batch negatives for the rest. If the pool is the
                share q of all negatives of the anchor, its exponential is multiplied by n q / (1 - q) (n at least 1),
                so that the denominator is, up to one constant factor, an unbiased estimate of the sum over the whole
                gallery (stratified sampling; in-batch members that lie in the pool are counted twice). The positive
                keeps weight 1, as in-batch softmax always over-weighs it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses._settings import OFFLINE, InBatch
from trainer.similarities import Reduction, Side, Similarities

__all__ = ["Config", "parts"]


class Config(InBatch):
    """`tau` as published; `reduction="sum"` is the mean times the number of pairs."""

    reduction: Reduction = "mean"
    tau: float = Field(default=0.1, gt=0)
    offline: Literal["none", "softmax", "OffTri", "OffQuin"] = "none"  # type: ignore[assignment]
    correction: Literal["none", "stratified"] = "none"

    @property
    def online(self) -> Config:
        defaults = {name: type(self).model_fields[name].default for name in (*OFFLINE, "correction")}
        return self.model_copy(update=defaults)

    def unit(self, side: Side) -> float:
        """Softmax probability 1, as the paper counts: dL/dS_ij = p_ij / (2 tau) for every pair."""
        return 0.5 / self.tau * super().unit(side)


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}: half the cross entropy of each direction, offline negatives included."""

    def per_pair(side: Side) -> Tensor:
        positive = side.positive / config.tau
        # A finite floor: the softmax of an anchor without any negative has no NaN in its gradient.
        floor = torch.finfo(side.scores.dtype).min / 4
        rest = side.at_pairs(torch.logsumexp((side.masked / config.tau).clamp(min=floor), dim=1))
        if config.offline == "softmax" and side.offline is not None:
            rest = torch.logaddexp(rest, _offline_logit(config, side, floor))
        # log(1 + e^(rest - positive)): a difference of two large logits has no digits left where the loss is near 0.
        return 0.5 * torch.logaddexp(rest - positive, torch.zeros_like(positive))

    return similarities.both(config.mask, per_pair, config.reduction)


def _offline_logit(config: Config, side: Side, floor: float) -> Tensor:
    """(P,) logit of the offline negative with its correction; the floor where there is none."""
    assert side.offline is not None
    assert side.has_offline is not None
    logit = side.offline / config.tau
    if config.offline_weight != 1:
        logit = logit + math.log(max(config.offline_weight, 1e-30))
    if config.correction == "stratified":
        assert side.offline_share is not None, "the sampler gave no pool shares"
        share = side.offline_share.to(logit.dtype)
        stands_for = side.num_negatives.clamp(min=1) * share / (1 - share).clamp(min=1e-6)
        logit = logit + stands_for.clamp(min=1e-12).log()
    return logit.masked_fill(~side.has_offline, floor)
