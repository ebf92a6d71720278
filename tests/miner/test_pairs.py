"""Order and identity of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.pairs import Pairs


def test_ids_are_ordered_as_numbers_when_all_are():
    assert Ids(["10", "9", "007", "7"]).order.tolist() == [2, 3, 1, 0]
    assert Ids(["10", "9", "x"]).order.tolist() == [0, 1, 2]
    assert Ids(["é", "z", "Z"]).order.tolist() == [2, 1, 0]


def test_unordered_fingerprint_is_of_the_content_alone(problem):
    given = problem().pairs
    texts = tuple(f"caption {name}" for name in given.text_ids)
    with_texts = Pairs(given.image_ids, given.text_ids, given.image_rows, given.text_rows, texts)
    other = problem().permuted(3).pairs
    other_texts = Pairs(
        other.image_ids,
        other.text_ids,
        other.image_rows,
        other.text_rows,
        tuple(f"caption {name}" for name in other.text_ids),
    )
    assert given.unordered_fingerprint == other.unordered_fingerprint != with_texts.unordered_fingerprint
    assert with_texts.unordered_fingerprint == other_texts.unordered_fingerprint
    assert with_texts.fingerprint != other_texts.fingerprint
    image, text = np.argwhere(~given.belong(np.arange(given.num_images), np.arange(given.num_texts)))[0]
    more = Pairs(given.image_ids, given.text_ids, np.append(given.image_rows, image), np.append(given.text_rows, text))
    assert more.unordered_fingerprint != given.unordered_fingerprint


def test_positives_and_belong_agree(problem):
    given = problem().pairs
    whole = given.belong(np.arange(given.num_images), np.arange(given.num_texts))
    assert whole.sum() == given.num_pairs
    for side, table in (("image", whole), ("text", whole.T)):
        offsets, rows = given.positives(side)
        for item, own in enumerate(table):
            assert rows[offsets[item] : offsets[item + 1]].tolist() == np.flatnonzero(own).tolist()


@pytest.mark.parametrize(
    ("links", "sentence"),
    [
        ([("a", "x"), ("b", "y"), ("c", "x")], "unknown image id"),
        ([("a", "x"), ("b", "x")], "text.* without a positive, first 'y'"),
        ([], "no pairs"),
    ],
)
def test_refusals(links, sentence):
    with pytest.raises(BadInput, match=sentence):
        Pairs.from_ids(["a", "b"], ["x", "y"], links)
