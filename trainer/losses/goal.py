"""GOAL: objectives given by their gradient (Xuan & Chen, WACV 2023, arXiv 2210.13188).

One hardest negative n per anchor and direction. A triplet weight T and pair weights P+, P- define the derivatives:

    dL/dS_p = -T P+        dL/dS_n = T P-

    triplet T    con    1
                 nca    sigmoid(tau (S_n - S_p))
                 cir    sigmoid(-tau (S_p (2 - S_p) - S_n^2 - 1/2))
                 hinge  1 where margin + S_n > S_p: with `con` the max-violation triplet
    pair P+, P-  con    1, 1
                 lin    1 - S_p, S_n
                 sig    1 / (1 + e^{a (S_p - l)}), 1 / (1 + e^{-b (S_n - l)})
                 lin_ms (1 - R+) (1 - S_p), (1 + R-) S_n
                 sig_ms 1 / (e^{a (S_p - l)} + R+), 1 / (e^{-b (S_n - l)} + R-)

    A_i = {j != i : p_j <= S_n,i + 0.1}                      B_i = {valid k != n(i) : s_ik >= min_j p_j - 0.1}
    lin_ms:  R+ = mean_A (p_i - p_j)                         R- = mean_B (S_n,i - s_ik)
    sig_ms:  R+ = mean_A e^{a (p_i - p_j)}                   R- = mean_B e^{-b (S_n,i - s_ik)}
    R = 0 for an empty set.

With R = 0 `sig_ms` is unbounded (148 at S_n = 1). `sig_ms_bounded` adds 1 to R: the item itself counts in the relative
term, as in the multi-similarity loss that this comes from (Wang et al., CVPR 2019); then P <= 1, and `sig` if alone.

The loss is the surrogate sum sg(-T P+) S_p + sg(T P-) S_n (sg: no gradient through it), whose gradient is exactly the
above for any scorer, and respects loss scaling, accumulation and DDP. Its value means nothing: look at `figures`.

`offline="goal"` adds the same objective over the offline triplets (S_p, a); "goal_only" has them alone. The paper knows
in-batch triplets only. Their relative terms look at the batch: A_i as above with S_n = a, B_i with no one left out.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses._settings import InBatch
from trainer.losses.triplet import Config as Triplet
from trainer.similarities import Side, Similarities, reduce

__all__ = ["Config", "Weights", "figures", "parts", "weights"]

_NEAR = 0.1
_EXPONENT = 50.0


class Config(InBatch):
    """`triplet` and `pair` choose T and P. `tau` 10 is what the paper trains with; the published class has 1."""

    triplet: Literal["con", "nca", "cir", "hinge"] = "nca"
    pair: Literal["con", "lin", "sig", "lin_ms", "sig_ms", "sig_ms_bounded"] = "con"
    tau: float = Field(default=10.0, gt=0)
    a: float = Field(default=2.0, gt=0)
    b: float = Field(default=10.0, gt=0)
    l: float = 0.5  # noqa: E741 - the paper's letter
    margin: float = Field(default=0.2, ge=0)
    offline: Literal["none", "goal", "goal_only", "OffTri", "OffQuin"] = "none"  # type: ignore[assignment] # wider than theirs

    @property
    def warm_up(self) -> Triplet:
        return self.all_negatives(self.margin)


class Weights(NamedTuple):
    """T, P+ and P- of every pair, (P,) each."""

    triplet: Tensor
    positive: Tensor
    negative: Tensor


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"} and, over offline triplets, {"offline_text", "offline_image"}: surrogates."""
    found = {}
    for side in similarities.sides(config.mask):
        offline = config.offline in ("goal", "goal_only") and side.offline is not None
        if not (offline and config.offline == "goal_only"):
            online = _surrogate(config, side, *side.hardest)
            found[f"online_{side.searched}"] = reduce(online, config.reduction)
        if offline:
            assert side.offline is not None
            assert side.has_offline is not None
            loss = reduce(_surrogate(config, side, side.offline, side.has_offline, None), config.reduction)
            found[f"offline_{side.searched}"] = config.offline_weight * loss
    return found


@torch.no_grad()
def figures(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """Means over the anchors of both directions: "S_p", "S_n" (hardest in the batch), "T", "P+" and "P-"."""
    columns = []
    for side in similarities.sides(config.mask):
        score, has, candidate = side.hardest
        columns.append(torch.stack([side.positive, score, *weights(config, side, score, candidate)])[:, has])
    found = torch.cat(columns, dim=1)
    return dict(zip(("S_p", "S_n", "T", "P+", "P-"), found.sum(1) / max(found.shape[1], 1), strict=True))


def _surrogate(config: Config, side: Side, negative: Tensor, has: Tensor, candidate: Tensor | None) -> Tensor:
    """(P,): its derivative is -T P+ by the positive and T P- by the negative, and 0 where there is no negative."""
    triplet, pull, push = weights(config, side, negative, candidate)
    zero = triplet.new_zeros(())
    return (triplet * push).where(has, zero) * negative - (triplet * pull).where(has, zero) * side.positive


@torch.no_grad()
def weights(config: Config, side: Side, negative: Tensor, candidate: Tensor | None) -> Weights:
    """T, P+, P- for the triplets (positive, `negative`); `candidate` is the negative's column, None if offline."""
    # Detached: `lin` hands the negative itself back, which `no_grad` alone would leave in the graph.
    positive, negative = side.positive.detach(), negative.detach()
    if config.triplet == "con":
        triplet = torch.ones_like(positive)
    elif config.triplet == "nca":
        triplet = torch.sigmoid(config.tau * (negative - positive))
    elif config.triplet == "cir":
        triplet = torch.sigmoid(-config.tau * (positive * (2 - positive) - negative.square() - 0.5))
    else:
        triplet = (config.margin + negative > positive).to(positive.dtype)
    if config.pair == "con":
        return Weights(triplet, torch.ones_like(positive), torch.ones_like(positive))
    if config.pair == "lin":
        return Weights(triplet, 1 - positive, negative)
    if config.pair == "lin_ms":
        pull, push = _relative_lin(side, negative, candidate)
        return Weights(triplet, (1 - pull) * (1 - positive), (1 + push) * negative)
    pull = push = torch.ones_like(positive)
    if config.pair != "sig":
        pull, push = _relative_sig(config, side, negative, candidate)
        if config.pair == "sig_ms_bounded":
            pull, push = pull + 1, push + 1
    # Cosines keep both exponents small; the floor leaves `sig_ms` a number for scores of any size.
    easy = torch.exp((config.a * (positive - config.l)).clamp(min=-_EXPONENT))
    hard = torch.exp((-config.b * (negative - config.l)).clamp(min=-_EXPONENT))
    return Weights(triplet, 1 / (easy + pull), 1 / (hard + push))


def _relative_lin(side: Side, negative: Tensor, candidate: Tensor | None) -> tuple[Tensor, Tensor]:
    positive = side.positive
    near, others = _near(side, negative, candidate)
    pull = _mean_where(positive[:, None] - positive[None, :], near)
    push = _mean_where(negative[:, None] - side.at_pairs(side.scores), others)
    return pull, push


def _relative_sig(config: Config, side: Side, negative: Tensor, candidate: Tensor | None) -> tuple[Tensor, Tensor]:
    positive = side.positive
    near, others = _near(side, negative, candidate)
    pull = _mean_where(torch.exp(config.a * (positive[:, None] - positive[None, :])), near)
    push = _mean_where(torch.exp(-config.b * (negative[:, None] - side.at_pairs(side.scores))), others)
    return pull, push


def _near(side: Side, negative: Tensor, candidate: Tensor | None) -> tuple[Tensor, Tensor]:
    """A of every pair, (P, P) bool, and B, (P, C) bool."""
    positive = side.positive
    near = positive[None, :] <= negative[:, None] + _NEAR
    near.fill_diagonal_(False)
    others = side.at_pairs(side.masked >= positive.min() - _NEAR)
    if candidate is not None:
        others = others.scatter(1, candidate[:, None], False)
    return near, others


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each row's chosen values, 0 where none is."""
    return values.where(chosen, values.new_zeros(())).sum(1) / chosen.sum(1).clamp(min=1)
