"""SmoothAP: average precision with a sigmoid for the step (Brown et al., ECCV 2020), for image-caption retrieval as in
Bleeker & de Rijke (ECIR 2022, arXiv 2202.07474).

For a query with candidates O and positives P, scores s, G(x) = sigmoid(x / tau) with the exponent clamped to +-50:

    R(a)   = 1 + sum_{b in O, b != a} G(s_b - s_a)        R_P(a) = 1 + sum_{b in P, b != a} G(s_b - s_a)
    AP     = 1/|P| sum_{a in P} R_P(a) / R(a)
    L      = 1/2 mean_{image queries} (1 - AP) + 1/2 mean_{text queries} (1 - AP)

Batches are of images with all their captions, of which there may be any number. Only rows of positives are ranked, and
those in chunks that are computed again for the gradient, so memory stays below a few times (images x texts).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.losses._settings import InBatch
from trainer.similarities import Reduction, Side, Similarities

__all__ = ["Config", "parts"]

_EXPONENT = 50.0
_CHUNK = 1 << 21  # entries of one block of differences: 8 MiB in float32, of which a few are alive at once


class Config(InBatch):
    """`tau` as published; `reduction="sum"` adds the queries instead of averaging them."""

    reduction: Reduction = "mean"
    tau: float = Field(default=0.01, gt=0)

    @property
    def batch_by(self) -> Literal["pairs", "images"]:
        return "images"

    def unit(self, side: Side) -> float:
        """A derivative of AP by a score, in units of 1 / tau."""
        queries = int((~side.negative).any(1).sum()) if self.reduction == "mean" else 1
        return 0.5 / self.tau / max(queries, 1)


def parts(config: Config, similarities: Similarities) -> dict[str, Tensor]:
    """{"online_text", "online_image"}: half of 1 - AP over the image queries, and over the text queries."""
    return {f"online_{side.searched}": _side(config, side) for side in similarities.sides(config.mask)}


def _side(config: Config, side: Side) -> Tensor:
    own = ~side.negative
    query, column = own.nonzero(as_tuple=True)
    if not len(query):
        return side.scores.sum() * 0
    rows = max(_CHUNK // side.scores.shape[1], 1)
    missed = []
    for start in range(0, len(query), rows):
        chunk = (side.scores, own, query[start : start + rows], column[start : start + rows], config.tau)
        if len(query) > rows:
            missed.append(checkpoint(_missed, *chunk, use_reentrant=False))
        else:
            missed.append(_missed(*chunk))
    num_own = own.sum(1)
    loss = 0.5 * (torch.cat(missed) / num_own[query]).sum()
    return loss / (num_own > 0).sum() if config.reduction == "mean" else loss


def _missed(scores: Tensor, own: Tensor, query: Tensor, column: Tensor, tau: float) -> Tensor:
    """1 - R_P / R of some positives, (K,): positive k is candidate `column[k]` of `query[k]`.

    As (R - R_P) / R, the sum of G over negatives by R: near 0 the difference of two large numbers has no digits left.
    """
    rows = scores.index_select(0, query)
    above = torch.sigmoid(((rows - rows.gather(1, column[:, None])) / tau).clamp(-_EXPONENT, _EXPONENT))
    above = above.scatter(1, column[:, None], 0.0)
    return (above * ~own.index_select(0, query)).sum(1) / (1 + above.sum(1))
