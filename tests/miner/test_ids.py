"""Ids in Arrow's memory against Python's own strings: order, repetition, look-up."""

from __future__ import annotations

import random

import numpy as np
import pytest

from miner.artifacts.ids import Ids


def sorted_by_hand(ids: list[str]) -> list[int]:
    if all(i.isascii() and i.isdigit() for i in ids):
        return sorted(range(len(ids)), key=lambda row: (int(ids[row]), ids[row]))
    return sorted(range(len(ids)), key=ids.__getitem__)


@pytest.mark.parametrize("seed", range(200))
def test_any_ids(seed: int) -> None:
    chosen = random.Random(seed)
    digits = chosen.random() < 0.4
    alphabet = "0123456789" if digits else "ab0é\U0001f600\uffff1\n "
    longest = chosen.choice([2, 30])
    given = ["".join(chosen.choices(alphabet, k=chosen.randint(1, longest))) for _ in range(chosen.randint(1, 12))]
    twice = next((i for i in given if given.count(i) > 1), None)
    ids = Ids(given)
    assert (ids.repeated(), list(ids), len(ids)) == (twice, given, len(given))
    assert ids.order.tolist() == sorted_by_hand(given)
    assert (ids == given, ids == tuple(given), ids == [*given, "x"], ids == Ids(given)) == (True, True, False, True)
    asked = [*chosen.sample(given, 1), "not there"]
    assert ids.rows(asked).tolist() == [given.index(asked[0]), -1]
    assert ids[1:] == given[1:]
    assert ids.take(np.array([0, 0])) == [given[0]] * 2
    assert (ids[0], ids[-1]) == (given[0], given[-1])


def test_numbers() -> None:
    assert Ids.numbers(12) == [str(row) for row in range(12)]
    assert len(Ids.numbers(0)) == 0
    assert Ids(()).repeated() is None
