"""Batches composed from tables: who comes together, which negatives are found in the batch, what is passed over."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from miner.artifacts.ranks import Simans
from trainer import losses, models, sampling
from trainer.data import Dataset
from trainer.neighbourhoods import Neighbourhoods, _Pass
from trainer.scoring import Inputs, gather, score
from trainer.text import Vocabulary
from trainer.training import EpochLog, FitConfig, fit

POOL = {"pool_text": 6, "pool_image": 4, "ranks": "untied"}


@dataclass(frozen=True)
class Listed:
    """A toy table that knows what rules dropped: by anchor row."""

    direction: Any
    negatives: np.ndarray
    num_negatives: np.ndarray
    by_anchor: list[list[int]]

    def dropped(self) -> tuple[np.ndarray, np.ndarray]:
        counts = [len(rows) for rows in self.by_anchor]
        return np.concatenate([[0], np.cumsum(counts)]), np.array(list(chain(*self.by_anchor)), dtype=np.int64)


def close(pairs: Pairs, tables: Any, size: int, **how: Any) -> Neighbourhoods:
    return Neighbourhoods(pairs, tables, size, **{**POOL, **how})


def pool_of(tables: Any, direction: str, anchor: int, **how: Any) -> list[int]:
    """Rows of an anchor's pool, in order, as the settings say it."""
    side = "text" if direction == "i2t" else "image"
    skip, pool = how.get(f"skip_{side}", 0), {**POOL, **how}[f"pool_{side}"]
    return [row for row in tables[direction].negatives[anchor].tolist() if row >= 0][skip : skip + pool]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("steps", [None, 3, 14])
def test_every_pair_once_and_batches_of_one_size(toys: SimpleNamespace, size: int, steps: int | None) -> None:
    pairs = toys.pairs()
    composed = close(pairs, toys.tables(pairs), size)
    for epoch in range(3):
        found = list(composed.batches(16, 4, epoch, steps))
        assert len(found) == sampling.num_batches(pairs, 16, steps) == (steps or pairs.num_pairs // 16)
        assert {len(batch) for batch in found} == {16}
        per_pass = pairs.num_pairs // 16
        for start in range(0, len(found), per_pass):
            together = np.concatenate(found[start : start + per_pass])
            assert len(set(together.tolist())) == len(together)
        again = list(composed.batches(16, 4, epoch, steps))
        assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
        at_random = sampling.batches(pairs, 16, 4, epoch, steps=steps)
        for start in range(0, len(found), per_pass):  # the same pairs have their turn
            ends = slice(start, start + per_pass)
            if steps is None or start + per_pass <= steps:
                assert set(np.concatenate(found[ends]).tolist()) == set(np.concatenate(at_random[ends]).tolist())
        same = all(np.array_equal(one, other) for one, other in zip(found, at_random, strict=True))
        assert same == (size == 1)
    assert not np.array_equal(next(composed.batches(16, 4, 0)), next(composed.batches(16, 5, 0)))


def test_fewer_pairs_than_a_batch_are_one(toys: SimpleNamespace) -> None:
    pairs = toys.pairs(4)
    (batch,) = close(pairs, toys.tables(pairs, k=2), 3).batches(64, 0, 0)
    assert sorted(batch.tolist()) == list(range(pairs.num_pairs))


@pytest.mark.parametrize("size", [2, 3, 4, 9])
@pytest.mark.parametrize("how", [{}, {"skip_text": 2, "skip_image": 1}, {"ranks": "top"}, {"ranks": "log_uniform"}])
def test_who_comes_together_follows_the_lists(toys: SimpleNamespace, size: int, how: dict[str, Any]) -> None:
    """Replayed with sets: the first is the next in line; every other is, for the first member in order that still has
    somebody to bring, a free pair of an item from its pool; and it ends early only when nobody is left to bring."""
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    order = np.random.default_rng(1).permutation(pairs.num_pairs)
    composing = _Pass(close(pairs, tables, size, **how), order, np.random.default_rng(2))
    free = set(order.tolist())
    image_of, text_of = pairs.image_rows.tolist(), pairs.text_rows.tolist()

    def bring(member: int, direction: str) -> list[set[int]]:
        """By rank, the free pairs of each item of the pool."""
        anchor, item_of = (image_of[member], text_of) if direction == "i2t" else (text_of[member], image_of)
        items = pool_of(tables, direction, anchor, **how)
        return [{pair for pair in free if item_of[pair] == item} for item in items]

    short = 0
    while free:
        members = composing._neighbourhood(size)
        assert members[0] == next(pair for pair in order.tolist() if pair in free)
        free.discard(members[0])
        waiting = iter(members[1:])
        for member in members:
            for direction in ("i2t", "t2i"):
                offered = [there for there in bring(member, direction) if there]
                if not offered:
                    continue
                brought = next(waiting, None)
                if brought is None:
                    assert len(members) == size
                    break
                assert brought in (offered[0] if how.get("ranks") == "top" else set().union(*offered))
                free.discard(brought)
        assert next(waiting, None) is None
        short += len(members) < size
    assert short > 0  # an anchor has no negative at all, and at the end everybody has had their turn


@pytest.mark.parametrize("law", ["untied", "log_uniform", Simans(30.0)], ids=str)
def test_ranks_are_drawn_by_the_law(toys: SimpleNamespace, law: Any) -> None:
    """Of the first neighbour, and of the negatives found in a batch: shares within five standard errors."""
    num, pool = 12, 5
    ids = [str(row) for row in range(num)]
    pairs = Pairs.from_ids(ids, ids, list(zip(ids, ids, strict=True)))
    rows = (np.arange(num)[:, None] + 1 + np.arange(num - 1)[None, :]) % num
    scores = np.tile(np.linspace(0.9, 0.1, num - 1, dtype="f4"), (num, 1))
    table = SimpleNamespace(
        negatives=rows.astype(np.int32), num_negatives=np.full(num, num - 1), scores=scores,
        lowest_positive=np.full(num, 0.7, "f4"),
    )  # fmt: skip
    composed = close(pairs, {"i2t": table, "t2i": table}, 2, pool_text=pool, pool_image=pool, ranks=law)
    weights = {
        "untied": [1.0] * pool,
        "log_uniform": [1 / (rank + 1) for rank in range(pool)],
    }.get(law if isinstance(law, str) else "", [math.exp(-30 * (s - 0.7) ** 2) for s in scores[0, :pool].tolist()])
    number = 4000
    firsts, drawn = Counter[int](), Counter[int]()
    for seed in range(number):
        composing = _Pass(composed, np.roll(np.arange(num), -3), np.random.default_rng(seed))
        one, other = composing._neighbourhood(2)
        firsts[(other - one - 1) % num] += 1
        drawn[(int(composed.draw(np.arange(num), seed, 0, 0).text[3]) - 4) % num] += 1
    for found in (firsts, drawn):
        assert set(found) <= set(range(pool))
        for rank, weight in enumerate(weights):
            share = weight / math.fsum(weights)
            assert abs(found[rank] / number - share) < 5 * math.sqrt(share * (1 - share) / number) + 1e-3


@pytest.mark.parametrize("how", [{}, {"skip_text": 2, "skip_image": 1, "ranks": "tied"}, {"ranks": "top"}])
def test_a_pair_finds_its_negatives_in_the_batch(toys: SimpleNamespace, how: dict[str, Any]) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    found_some = Counter[bool]()
    for size in (1, 3, 16):
        composed = close(pairs, tables, size, **how)
        for step, batch in enumerate(composed.batches(16, 0, 2)):
            draw = composed.draw(batch, 0, 2, step)
            images, texts = pairs.image_rows[batch].tolist(), pairs.text_rows[batch].tolist()
            members = list(zip(images, texts, strict=True))
            for at, (image, text) in enumerate(members):
                there = [row for row in pool_of(tables, "i2t", image, **how) if row in texts]
                wanted = there[:1] if how.get("ranks") == "top" else there
                assert (int(draw.text[at]) in wanted) if there else draw.text[at] == draw.partner_image[at] == -1
                assert not there or (draw.partner_image[at], draw.text[at]) in members
                there = [row for row in pool_of(tables, "t2i", text, **how) if row in images]
                assert (int(draw.image[at]) in there) if there else draw.image[at] == draw.partner_text[at] == -1
                assert not there or (draw.image[at], draw.partner_text[at]) in members
                found_some[bool(there)] += 1
            again = composed.draw(batch, 0, 2, step)
            assert np.array_equal(draw.text, again.text)
    assert min(found_some[True], found_some[False]) > 20


def test_shares_of_the_pools_are_those_of_the_usual_draw(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    how: dict[str, Any] = {**POOL, "skip_text": 1, "skip_image": 2}
    whole = sampling.draw(pairs, tables, **how, seed=0, epoch=0)
    batch = np.arange(5, 30)
    found = close(pairs, tables, 3, **how).draw(batch, 0, 0, 0)
    assert np.array_equal(found.text_share, whole.text_share[batch])
    assert np.array_equal(found.image_share, whole.image_share[batch])


def test_closer_batches_hold_more_negatives(toys: SimpleNamespace) -> None:
    """What `size` is for: the share of pairs that find an offline negative grows from random to composed."""
    pairs = toys.pairs(600)
    tables = toys.tables(pairs)
    shares = []
    for size in (1, 3, 24):
        composed = close(pairs, tables, size)
        draws = [composed.draw(batch, 0, 0, step) for step, batch in enumerate(composed.batches(24, 0, 0))]
        shares.append(np.mean(np.concatenate([(draw.text >= 0).astype(float) + (draw.image >= 0) for draw in draws])))
    assert shares[0] < 0.5 * shares[1] < shares[1] < shares[2]


def test_what_was_passed_over_is_no_negative(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    rng = np.random.default_rng(8)
    listed = {
        direction: Listed(
            direction, table.negatives, table.num_negatives,
            [rng.choice(size, int(rng.integers(0, 9)), replace=False).tolist() for _ in table.negatives],
        )
        for (direction, table), size in zip(tables.items(), (pairs.num_texts, pairs.num_images), strict=True)
    }  # fmt: skip
    batch = np.random.default_rng(3).permutation(pairs.num_pairs)[:40]
    for skip_text, skip_image, given in (
        (0, 0, tables),
        (2, 0, tables),
        (0, 3, tables),
        (0, 0, listed),
        (1, 2, listed),
    ):
        composed = close(pairs, given, 3, skip_text=skip_text, skip_image=skip_image)
        found = composed.passed_over(batch)
        expected = np.zeros_like(found)
        for a, one in enumerate(batch):
            for b, other in enumerate(batch):
                image, text = int(pairs.image_rows[one]), int(pairs.text_rows[other])
                first = [row for row in given["i2t"].negatives[image][:skip_text] if row >= 0]
                back = [row for row in given["t2i"].negatives[text][:skip_image] if row >= 0]
                dropped = given is listed and (
                    text in listed["i2t"].by_anchor[image] or image in listed["t2i"].by_anchor[text]
                )
                expected[a, b] = text in first or image in back or dropped
        assert np.array_equal(found, expected)
        assert expected.any() == bool(skip_text or skip_image or given is listed)


def test_nothing_is_encoded_beyond_the_batch_and_the_loss_is_the_same(dataset: Dataset, toys: SimpleNamespace) -> None:
    """All terms, and their gradients, are those of six separate encodings; the encoder sees the batch alone."""
    pairs = dataset.pairs
    tables = toys.tables(pairs)
    torch.manual_seed(0)
    config = models.configure("vsepp", {"dim": 16, "word_dim": 8})
    model = models.build(config, Vocabulary.build(pairs.texts), dataset.image_shape)
    inputs = Inputs.of(dataset, model)
    composed = close(pairs, tables, 3, skip_text=1)
    loss_config = losses.configure("aoq")
    batch = next(composed.batches(24, 0, 1))
    draw, passed_over = composed.draw(batch, 0, 1, 0), composed.passed_over(batch)
    assert (draw.text >= 0).any()
    assert (draw.text < 0).any()
    assert (passed_over & ~pairs.belong(pairs.image_rows[batch], pairs.text_rows[batch])).any()
    seen = {"image": 0, "text": 0}
    images_of, texts_of = model.encode_images, model.encode_texts

    def images(rows: torch.Tensor) -> torch.Tensor:
        seen["image"] += len(rows)
        return images_of(rows)

    def texts(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        seen["text"] += len(tokens)
        return texts_of(tokens, lengths)

    model.encode_images, model.encode_texts = images, texts  # type: ignore[method-assign]  # to count what they see
    gathered = gather(inputs, batch, draw, passed_over=passed_over)
    step = score(model, gathered, torch.device("cpu"), torch.float32)
    assert seen == {"image": len(set(pairs.image_rows[batch])), "text": len(set(pairs.text_rows[batch]))}
    assert np.array_equal(
        step.similarities.valid.numpy(), ~pairs.belong(pairs.image_rows[batch], pairs.text_rows[batch]) & ~passed_over
    )
    torch.stack(list(losses.parts(loss_config, step.similarities).values())).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    rows = {
        "I": pairs.image_rows[batch], "T": pairs.text_rows[batch], "T-": draw.text, "I-": draw.image,
        "I*": draw.partner_image, "T*": draw.partner_text,
    }  # fmt: skip
    encoded = {
        name: images_of(inputs.images(np.maximum(at, 0)))
        if name[0] == "I"
        else texts_of(*inputs.texts(np.maximum(at, 0)))
        for name, at in rows.items()
    }
    offline = step.similarities.offline
    assert offline is not None
    again = replace(
        step.similarities,
        scores=(encoded["I"].float() @ encoded["T"].float().T),
        offline=replace(
            offline,
            text=(encoded["I"] * encoded["T-"]).sum(1).float(),
            image=(encoded["I-"] * encoded["T"]).sum(1).float(),
            negatives=(encoded["I-"] * encoded["T-"]).sum(1).float(),
            partners=(encoded["I*"] * encoded["T*"]).sum(1).float(),
        ),
    )
    parts = losses.parts(loss_config, again)
    for name, value in losses.parts(loss_config, step.similarities).items():
        assert value.item() == pytest.approx(parts[name].item(), abs=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


MODEL = models.configure("vsepp", {"dim": 16, "word_dim": 8})
QUICK = FitConfig(epochs=3, batch_size=16, lr=5e-3, warmup_epochs=1, threads=1, neighbourhood=3)


class Killed(Exception):
    """Stands for a kill."""


def test_training_with_them_goes_on_where_it_was_killed(
    dataset: Dataset, toys: SimpleNamespace, tmp_path: Path
) -> None:
    tables = toys.tables(dataset.pairs)
    aoq = losses.configure("aoq", {"h_t": 5, "h_v": 5})
    logs: list[EpochLog] = []
    whole = fit(dataset, MODEL, aoq, QUICK, tables=tables, progress=logs.append)
    assert [log.offline_hardness is None for log in logs] == [True, False, False]  # warm-up draws at random
    assert {log.steps for log in logs} == {dataset.pairs.num_pairs // 16}
    assert {log.pairs for log in logs} == {16 * (dataset.pairs.num_pairs // 16)}

    def killed(log: EpochLog) -> None:
        if log.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        fit(dataset, MODEL, aoq, QUICK, tables=tables, scratch=tmp_path, progress=killed)
    again = fit(dataset, MODEL, aoq, QUICK, tables=tables, scratch=tmp_path)
    other = fit(dataset, MODEL, aoq, QUICK.model_copy(update={"neighbourhood": 1}), tables=tables)
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
    assert not all(torch.equal(whole.weights[name], other.weights[name]) for name in whole.weights)


def test_without_tables_batches_are_drawn_at_random(dataset: Dataset) -> None:
    triplet = losses.configure("triplet")
    one, other = (
        fit(dataset, MODEL, triplet, QUICK.model_copy(update={"neighbourhood": size})) for size in (1, 16)
    )  # fmt: skip
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


@pytest.mark.parametrize(
    ("loss", "size", "said"),
    [
        (("smoothap", {"offline": "OffTri"}), 3, "takes batches of images with all their captions"),
        (("aoq", {}), 17, "a batch has 16"),
        (("ntxent", {"offline": "softmax", "ranks": "untied", "correction": "stratified"}), 3, "to be drawn evenly"),
    ],
)
def test_what_cannot_be_is_refused(dataset: Dataset, toys: SimpleNamespace, loss: Any, size: int, said: str) -> None:
    config = QUICK.model_copy(update={"neighbourhood": size})
    with pytest.raises(BadInput, match=f"fit.neighbourhood = {size} pairs cannot be, as .*{said}.*set it to 1"):
        fit(dataset, MODEL, losses.configure(*loss), config, tables=toys.tables(dataset.pairs))
