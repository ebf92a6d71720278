"""Attention, focal attention and pooling against loops, with contexts and queries of unequal lengths."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.trainer import attention_oracle as oracle
from trainer.models._attention import Focal, Pooling, RawNorm, View, attention, cosines, focal, pooled

CONTEXTS, QUERIES = [5, 1, 3], [4, 2, 1, 3]


def items(lengths: list[int], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 6, generator=random, dtype=torch.float64) for length in lengths]


def padded(found: list[Tensor]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(map(len, found))) < torch.tensor([[len(item)] for item in found])
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True), mask


def view(contexts: list[Tensor], queries: list[Tensor]) -> View:
    keys, key_mask = padded(contexts)
    asking, mask = padded(queries)
    return View(
        torch.einsum("ckd,qnd->cknq", keys, asking),
        keys @ keys.transpose(1, 2),
        key_mask[:, :, None, None],
        mask.T[None],
        asking.square().sum(2).T[None],
    )


@pytest.mark.parametrize("norm", get_args(RawNorm))
def test_weights_are_those_of_every_pair_alone(norm: RawNorm) -> None:
    contexts, queries = items(CONTEXTS, 0), items(QUERIES, 1)
    weights = attention(view(contexts, queries), norm, 3.0)
    assert weights.shape == (3, 5, 4, 4)
    for c, keys in enumerate(contexts):
        assert (weights[c, len(keys) :] == 0).all()
        for q, asking in enumerate(queries):
            alone = torch.stack([oracle.normalised([key @ query for query in asking], norm) for key in keys])
            torch.testing.assert_close(weights[c, : len(keys), : len(asking), q], (3 * alone).softmax(0))


@pytest.mark.parametrize("kind", [None, *get_args(Focal)])
def test_cosines_and_their_gradients_are_those_of_attended_vectors(kind: Focal | None) -> None:
    contexts = [item.requires_grad_() for item in items(CONTEXTS, 0)]
    queries = [item.requires_grad_() for item in items(QUERIES, 1)]
    leaves = [*contexts, *queries]
    seen = view(contexts, queries)
    weights = attention(seen, "clipped_l2norm", 5.0)
    found = cosines(seen, weights if kind is None else focal(seen, weights, kind))
    assert (found.masked_select(~seen.queries) == 0).all()
    random = torch.Generator().manual_seed(2)
    mine = wanted = torch.zeros((), dtype=torch.float64)
    for c, keys in enumerate(contexts):
        for q, asking in enumerate(queries):
            for at, expected in enumerate(oracle.compare(asking, keys, "clipped_l2norm", 5.0, kind)):
                torch.testing.assert_close(found[c, at, q], expected)
                weight = torch.randn((), generator=random)
                mine, wanted = mine + weight * found[c, at, q], wanted + weight * expected
    for ours, theirs in zip(torch.autograd.grad(mine, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_pooling_leaves_padding_out(pooling: Pooling) -> None:
    queries = items(QUERIES, 1)
    seen = view(items(CONTEXTS, 0), queries)
    found = cosines(seen, attention(seen, "clipped_l2norm", 5.0))
    scores = pooled(seen, found, pooling, 4.0)
    for c in range(len(CONTEXTS)):
        for q, length in enumerate(QUERIES):
            torch.testing.assert_close(scores[c, q], oracle.pool(list(found[c, :length, q]), pooling, 4.0))


@pytest.mark.parametrize(
    ("weights", "equal", "prob"),
    [
        ([0.5, 0.3, 0.2], [1, 0, 0], [1, 0, 0]),
        ([0.45, 0.345, 0.205], [1, 1, 0], [1, 0, 0]),  # above the mean, .333, but not above .349 as prob asks
        ([0.25, 0.25, 0.25, 0.25], [1, 1, 1, 1], [1, 1, 1, 1]),  # none above the mean: all stay
        ([1.0], [1], [1]),
        ([0.4, 0.4, 0.2], [1, 1, 0], [1, 1, 0]),
    ],
)
def test_focal_attention_by_hand(weights: list[float], equal: list[int], prob: list[int]) -> None:
    size = len(weights)
    for padding in (0, 3):  # padding lowers neither the mean nor the sums
        values = torch.tensor(weights + [0.0] * padding)[None, :, None, None]
        real = (torch.arange(size + padding) < size)[None, :, None, None]
        seen = View(values, torch.eye(size + padding)[None], real, torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1))
        kinds: tuple[tuple[Focal, list[int]], ...] = (("equal", equal), ("prob", prob))
        for kind, kept in kinds:
            expected = torch.tensor(weights) * torch.tensor(kept)
            assert torch.equal(focal(seen, values, kind).flatten()[:size], expected)
            scaled = torch.stack(oracle.refocused(list(torch.tensor(weights)), kind))
            torch.testing.assert_close(scaled, expected / expected.sum())


def test_vectors_of_zero_give_scores_of_zero_and_finite_gradients() -> None:
    leaf = torch.zeros(2, 3, 4, requires_grad=True)
    seen = view([leaf[0]], [leaf[1]])
    for norm in get_args(RawNorm):
        found = cosines(seen, attention(seen, norm, 9.0))
        assert (found == 0).all()
        total = found.sum() + pooled(seen, found, "logsumexp", 6.0).sum()
        (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
        assert (gradient == 0).all()


@pytest.mark.parametrize("norm", get_args(RawNorm))
def test_rounding_does_not_grow_in_the_gradient_of_a_zero_vector(norm: RawNorm) -> None:
    """Its products are all 0, where the slope of their norm is 1 / 1e-8."""
    contexts, queries = items([30], 0), items([12], 1)
    contexts[0][1] = 0

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = contexts[0].to(dtype, copy=True).requires_grad_()
        seen = view([leaf], [queries[0].to(dtype)])
        (found,) = torch.autograd.grad(cosines(seen, attention(seen, norm, 1.0)).sum(), leaf)
        return found[1].double()

    torch.testing.assert_close(gradient(torch.float32), gradient(torch.float64), atol=1e-4, rtol=1e-4)
