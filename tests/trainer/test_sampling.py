"""Draws are functions of (seed, epoch), inside the pools, never a positive; ranks tied as published."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from trainer import sampling


def drawn(pairs: Pairs, tables: Any, **settings: Any) -> sampling.Draw:
    given = {"pool_text": 300, "pool_image": 60, "ranks": "tied", "seed": 0, "epoch": 0, **settings}
    return sampling.draw(pairs, tables, **given)


def wide_tables(toys: SimpleNamespace, num_anchors: int, h: int) -> tuple[Pairs, dict[Any, Any]]:
    """One-to-one pairs; the negative at rank r of anchor a is row (a + 1 + r) mod n, so that a draw tells its rank."""
    ids = [str(row) for row in range(num_anchors)]
    pairs = Pairs.from_ids(ids, ids, list(zip(ids, ids, strict=True)))
    rows = ((np.arange(num_anchors)[:, None] + 1 + np.arange(h)[None, :]) % num_anchors).astype(np.int32)
    count = np.full(num_anchors, h)
    return pairs, {direction: toys.Table(direction, rows, count) for direction in ("i2t", "t2i")}


def test_tied_ranks_are_the_published_formula(toys: SimpleNamespace) -> None:
    pairs, tables = wide_tables(toys, 500, 400)
    seen = set()
    for epoch in range(20):
        found = drawn(pairs, tables, epoch=epoch)
        text_rank = (found.text - pairs.image_rows - 1) % 500
        image_rank = (found.image - pairs.text_rows - 1) % 500
        assert np.array_equal(image_rank, text_rank * 60 // 300)
        seen |= set(text_rank.tolist())
    assert seen == set(range(300))


def test_untied_ranks_are_independent_and_fill_both_pools(toys: SimpleNamespace) -> None:
    pairs, tables = wide_tables(toys, 500, 400)
    ranks = []
    for epoch in range(40):
        found = drawn(pairs, tables, epoch=epoch, ranks="untied")
        ranks.append([(found.text - pairs.image_rows - 1) % 500, (found.image - pairs.text_rows - 1) % 500])
    text, image = np.concatenate(ranks, axis=1)
    assert set(text.tolist()) == set(range(300))
    assert set(image.tolist()) == set(range(60))
    assert abs(np.corrcoef(text, image)[0, 1]) < 0.05


@pytest.mark.parametrize("ranks", ["tied", "untied"])
def test_a_draw_is_a_negative_with_true_partners(toys: SimpleNamespace, ranks: str) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    for epoch in range(10):
        found = drawn(pairs, tables, ranks=ranks, epoch=epoch)
        for pair in range(pairs.num_pairs):
            image, text = int(pairs.image_rows[pair]), int(pairs.text_rows[pair])
            for anchor, negative, table in ((image, found.text[pair], "i2t"), (text, found.image[pair], "t2i")):
                allowed = tables[table].negatives[anchor]
                assert negative in allowed[allowed >= 0] or (
                    negative == -1 and tables[table].num_negatives[anchor] == 0
                )
            links = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
            if found.text[pair] >= 0:
                assert (image, int(found.text[pair])) not in links
                assert (int(found.partner_image[pair]), int(found.text[pair])) in links
            if found.image[pair] >= 0:
                assert (int(found.image[pair]), text) not in links
                assert (int(found.image[pair]), int(found.partner_text[pair])) in links
            assert (found.text[pair] < 0) == (found.partner_image[pair] < 0)


def test_every_partner_has_its_turn(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    offsets, positives = pairs.positives("image")
    met: dict[int, set[int]] = {}
    for epoch in range(200):
        found = drawn(pairs, tables, epoch=epoch)
        for image, text in zip(found.image.tolist(), found.partner_text.tolist(), strict=True):
            met.setdefault(image, set()).add(text)
    for image in range(pairs.num_images):
        if image in met:
            assert met[image] == set(positives[offsets[image] : offsets[image + 1]].tolist())


def test_a_draw_depends_on_seed_and_epoch_alone(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    first = drawn(pairs, tables, seed=3, epoch=5)
    drawn(pairs, tables, seed=3, epoch=6)
    again = drawn(pairs, tables, seed=3, epoch=5)
    for name in ("text", "image", "partner_image", "partner_text"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.text, drawn(pairs, tables, seed=4, epoch=5).text)
    assert not np.array_equal(first.text, drawn(pairs, tables, seed=3, epoch=6).text)


def test_partners_are_left_out_on_request(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    without = drawn(pairs, toys.tables(pairs), partners=False)
    assert (without.partner_text == -1).all()
    assert (without.partner_image == -1).all()
    assert np.array_equal(without.text, drawn(pairs, toys.tables(pairs)).text)


def one_to_one(count: int) -> Pairs:
    ids = [str(row) for row in range(count)]
    return Pairs.from_ids(ids, ids, list(zip(ids, ids, strict=True)))


def test_batches_are_a_cut_permutation() -> None:
    pairs = one_to_one(100)
    plan = sampling.batches(pairs, 32, seed=1, epoch=2)
    assert [len(batch) for batch in plan] == [32, 32, 32]
    assert len(set(np.concatenate(plan).tolist())) == 96
    assert np.array_equal(plan[0], sampling.batches(pairs, 32, seed=1, epoch=2)[0])
    assert not np.array_equal(plan[0], sampling.batches(pairs, 32, seed=1, epoch=3)[0])
    assert [sorted(batch.tolist()) for batch in sampling.batches(one_to_one(5), 32, 0, 0)] == [list(range(5))]


def test_an_epoch_of_given_steps_goes_on_with_fresh_permutations() -> None:
    pairs = one_to_one(100)
    plan = sampling.batches(pairs, 32, seed=1, epoch=2, steps=8)
    once = sampling.batches(pairs, 32, seed=1, epoch=2)
    assert [len(batch) for batch in plan] == [32] * 8
    assert all(np.array_equal(a, b) for a, b in zip(plan, once, strict=False))
    for first in (0, 3):
        assert len(set(np.concatenate(plan[first : first + 3]).tolist())) == 96
    assert not np.array_equal(plan[0], plan[3])
    assert len(sampling.batches(pairs, 32, 1, 2, steps=2)) == 2


def test_batches_of_images_bring_all_their_pairs(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    plan = sampling.batches(pairs, 7, seed=0, epoch=0, by="images")
    assert len(plan) == 30 // 7
    seen = []
    for batch in plan:
        images = np.unique(pairs.image_rows[batch])
        assert len(images) == 7
        assert set(batch.tolist()) == set(np.flatnonzero(np.isin(pairs.image_rows, images)).tolist())
        seen += images.tolist()
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("ranks", ["tied", "untied"])
def test_the_first_ranks_are_passed_over(toys: SimpleNamespace, ranks: str) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    drawn_ranks: dict[str, set[int]] = {"i2t": set(), "t2i": set()}
    for epoch in range(30):
        found = drawn(pairs, tables, pool_text=4, pool_image=3, skip_text=3, skip_image=2, ranks=ranks, epoch=epoch)
        for direction, anchors, rows in (
            ("i2t", pairs.image_rows, found.text),
            ("t2i", pairs.text_rows, found.image),
        ):
            for anchor, row in zip(anchors.tolist(), rows.tolist(), strict=True):
                # The first anchor has no negative, the second two: after skipping, neither has any left.
                if anchor in (0, 1):
                    assert row == -1
                else:
                    drawn_ranks[direction].add(tables[direction].negatives[anchor].tolist().index(row))
    assert drawn_ranks == {"i2t": {3, 4, 5, 6}, "t2i": {2, 3, 4}}
    for pair in range(pairs.num_pairs):
        image = int(pairs.image_rows[pair])
        negatives = pairs.num_texts - int((pairs.image_rows == image).sum())
        assert found.text_share[pair] == (0 if image in (0, 1) else 4 / negatives)


def test_shares_are_pool_over_negatives(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    found = drawn(pairs, toys.tables(pairs), pool_text=5, pool_image=3)
    for pair in range(pairs.num_pairs):
        image, text = int(pairs.image_rows[pair]), int(pairs.text_rows[pair])
        texts = pairs.num_texts - int((pairs.image_rows == image).sum())
        images = pairs.num_images - int((pairs.text_rows == text).sum())
        # The first anchor of either table has no negative, the second two.
        assert found.text_share[pair] == min({0: 0, 1: 2}.get(image, 8), 5) / texts
        assert found.image_share[pair] == min({0: 0, 1: 2}.get(text, 8), 3) / images


def test_a_table_of_other_pairs_or_direction_is_refused(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    sampling.check_table(tables["i2t"], "i2t", pairs)
    with pytest.raises(BadInput, match="is of direction i2t"):
        sampling.check_table(tables["i2t"], "t2i", pairs)
    with pytest.raises(BadInput, match="mine the pairs you train on"):
        sampling.check_table(toys.tables(toys.pairs(20))["i2t"], "i2t", pairs)
    bad = toys.Table("i2t", np.full_like(tables["i2t"].negatives, 10_000), tables["i2t"].num_negatives)
    with pytest.raises(BadInput, match="names text row"):
        sampling.check_table(bad, "i2t", pairs)
