"""NT-Xent: softmax over the batch at temperature tau, as in Bleeker & de Rijke (ECIR 2022, arXiv 2202.07474).

    L = 1/2 mean_i CE(S_i. / tau, i) + 1/2 mean_j CE(S_.j / tau, j)

With `mask="valid"` the other positives of an anchor leave the denominator; with "diagonal" they stay, as published.

`offline="softmax"` appends each pair's offline hard negative to its anchor's softmax, its exponential times
`offline_weight`. What that does to the estimate of the full softmax depends on `correction`:

    none        as one more candidate: a hard negative is heard as loudly as an in-batch one, though it stands for a
                small pool. Biased towards hard negatives on purpose, as in dense passage retrieval.
    stratified  with q the pool's share of all negatives of the anchor, the n in-batch exponentials are multiplied by
                1 - q and the offline one by n q: what a draw from either stratum stands for. Were the in-batch
                negatives drawn from outside the pool, the sum would be an unbiased estimate of n times the mean over
                the whole gallery. They are drawn from everywhere, so it is high by n (1 - q) q (mean of the pool - mean
                of the rest): small while the pool is. The positive keeps weight 1, as in any in-batch softmax.
"""

from __future__ import annotations

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
    offline: Literal["none", "softmax", "OffTri", "OffQuin"] = "none"  # type: ignore[assignment] # wider than theirs
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
            rest = _with_offline(config, side, rest, floor)
        # log(e^p + e^r) - p, written so that a small loss keeps its digits.
        return 0.5 * torch.logaddexp(rest - positive, torch.zeros_like(positive))

    return similarities.both(config.mask, per_pair, config.reduction)


def _with_offline(config: Config, side: Side, rest: Tensor, floor: float) -> Tensor:
    """Log of the in-batch sum `rest` and of the offline negative's exponential, weighted and added, (P,)."""
    assert side.offline is not None
    assert side.has_offline is not None
    weight = torch.full_like(side.offline, config.offline_weight)
    if config.correction == "stratified":
        assert side.offline_share is not None, "the sampler gave no pool shares"
        share = side.offline_share.to(rest.dtype) * side.has_offline
        rest = (rest + torch.log1p(-share)).clamp(min=floor)
        weight = weight * share * side.num_negatives.clamp(min=1)
    logit = side.offline / config.tau + weight.log()
    return torch.logaddexp(rest, logit.where(side.has_offline & (weight > 0), logit.new_full((), floor)))
