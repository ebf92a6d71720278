"""Regions of images against words of texts: the attention of SCAN (Lee et al., ECCV 2018), batched and masked.

Each element q of a query item attends to the elements k of a context item, and is compared with what it attended to,
c = sum_k a_k k. No c is ever formed. With the products S = K Q' and the Gram matrix G = K K'

    q.c = sum_k a_k S_k        |c|^2 = a' G a

so everything after one matrix product has the size of S, and as `cos(q, c)` ignores the length of c, weights need no
normalisation either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

__all__ = ["Focal", "Pooling", "RawNorm", "View", "attention", "cosines", "focal", "pooled"]

RawNorm = Literal["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm"]
Pooling = Literal["logsumexp", "mean", "max", "sum"]
Focal = Literal["equal", "prob"]
_EPSILON = 1e-8  # added to norms, and the least denominator of a cosine, as published
# An item of one element gives every context element of its sign the same weight, up to rounding and `_EPSILON`.
_TIE = 1e-4


@dataclass(frozen=True)
class View:
    """Products of a block seen from one side: which elements ask, and which are attended to.

    C context items of K elements, Q query items of N. Query items come last, so that all sums run over outer
    dimensions. Where every context item has a query item of its own, Q is 1, and what is known of queries has C rows.
    """

    products: Tensor  # (C, K, N, Q), 0 where either does not count
    gram: Tensor  # (C, K, K) of the contexts
    contexts: Tensor  # (C, K, 1, 1) bool: which elements count
    queries: Tensor  # (1 or C, N, Q) bool
    squares: Tensor  # (1 or C, N, Q) squared lengths of the query elements


def attention(view: View, norm: RawNorm, smooth: float) -> Tensor:
    """Weights (C, K, N, Q): softmax over the context of `smooth` times the normalised products; 0 at padding.

    clipped: LeakyReLU(0.1) first. l2norm, l1norm, softmax: of a context element's products, over the query item.
    """
    found = view.products
    if norm.startswith("clipped"):
        found = leaky_relu(found, 0.1)
    scale = found.new_full((), smooth)
    if norm.endswith("l2norm"):
        scale = smooth * _inverse((found * found).sum(2, keepdim=True), root=True)
    elif norm.endswith("l1norm"):
        scale = smooth * _inverse(found.abs().sum(2, keepdim=True), root=False)
    elif norm == "softmax":
        found = found.masked_fill(~view.queries[:, None], -torch.inf).softmax(2)
    hidden = torch.zeros_like(view.contexts, dtype=found.dtype).masked_fill(~view.contexts, -torch.inf)
    return torch.addcmul(hidden, found, scale).softmax(1)


def _inverse(size: Tensor, root: bool) -> Tensor:
    """1 / (norm + epsilon); 0 for a vector of zero, or what rounding leaves of its gradient grows by 1 / epsilon."""
    norm = size.clamp(min=1e-30).sqrt() if root else size
    return torch.where(size > 0, 1 / (norm + _EPSILON), 0)


def focal(view: View, weights: Tensor, kind: Focal) -> Tensor:
    """Weights (C, K, N, Q) of the context elements that matter to a query, 0 for the others (BFAN, Liu et al., 2019).

    equal: those above the mean. prob: those with sum_j (a_i - a_j) sqrt(a_j) > 0. Above means by a ten-thousandth, or
    rounding would choose among equals. Where none is, as with one element, all stay: the published code divides 0 by 0.
    """
    with torch.no_grad():
        if kind == "equal":
            factor, bound = view.contexts.sum(1, keepdim=True), weights.sum(1, keepdim=True)
        else:
            root = weights.sqrt()
            factor, bound = root.sum(1, keepdim=True), (weights * root).sum(1, keepdim=True)
        bound = bound * (1 + _TIE)
        none = weights.amax(1, keepdim=True) * factor <= bound
        kept = (weights * factor > bound) | none
    return weights * kept


def cosines(view: View, weights: Tensor) -> Tensor:
    """cos(q, c) of every query element with what it attends to, (C, N, Q); 0 at padding."""
    spread = torch.bmm(view.gram, weights.flatten(2)).view_as(weights)
    squares = (weights * spread).sum(1) * view.squares
    return (weights * view.products).sum(1) * squares.clamp(min=_EPSILON**2).rsqrt()


def pooled(view: View, found: Tensor, pooling: Pooling, smooth: float = 1.0) -> Tensor:
    """Cosines (C, N, Q) over the elements of a query item, (C, Q); logsumexp is (1 / smooth) log sum e^(smooth cos)."""
    if pooling in ("mean", "sum"):
        total = found.sum(1)
        return total / view.queries.sum(1) if pooling == "mean" else total
    found = found.masked_fill(~view.queries, -torch.inf)
    return found.amax(1) if pooling == "max" else (smooth * found).logsumexp(1) / smooth
