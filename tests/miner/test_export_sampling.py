"""Drawing the negatives that are exported: against sequential drawing by the formula, and through the command."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from miner.artifacts import negatives as negatives_module
from miner.artifacts.command import CommandGroup
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs
from miner.artifacts.ranks import Law, Simans, Softmax, drawn_sets
from miner.commands.export import export
from miner.export import _mined
from tests.miner.test_export import K, write_pairs, write_table

LAWS: list[Law] = ["untied", "log_uniform", Simans(40.0, 0.02), Softmax(0.05)]
TOP: Law = "top"
POOL = 5
SCORES = np.array([0.9, 0.85, 0.85, 0.6, 0.5], dtype=np.float32)
LOWEST = 0.7


def weights(law: Law, scores: Any, lowest: float) -> list[float]:
    """Of each rank, as the formula is written."""
    if law == "untied":
        return [1.0] * len(scores)
    if law == "log_uniform":
        return [1 / (rank + 1) for rank in range(len(scores))]
    if isinstance(law, Simans):
        return [math.exp(-law.a * (s - lowest - law.b) ** 2) for s in scores]
    assert isinstance(law, Softmax)
    return [math.exp(s / law.temperature) for s in scores]


def probability_of(chosen: set[int], of: list[float]) -> float:
    """That drawing one after the other, none twice, ends with exactly these."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, probability = math.fsum(of), 1.0
        for rank in order:
            probability *= of[rank] / left
            left -= of[rank]
        total += probability
    return total


def draws(law: Law, count: int, pool: int, number: int, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    scores = np.tile(SCORES, (number, 1))
    lowest, sizes = np.full(number, LOWEST, dtype=np.float32), np.full(number, pool)
    return drawn_sets(law, scores, lowest, sizes, count, rng.random(scores.shape))


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(("count", "pool"), [(1, 5), (2, 5), (3, 4)])
def test_sets_are_drawn_as_one_after_the_other(law: Law, count: int, pool: int) -> None:
    """Within five standard errors of every set's probability; a law of its neighbour is further away."""
    number = 40_000
    found = draws(law, count, pool, number)
    assert (found.sum(1) == count).all()
    assert not found[:, pool:].any()
    expected = weights(law, SCORES[:pool].astype(float), LOWEST)
    keys = found @ (1 << np.arange(POOL))
    for chosen in itertools.combinations(range(pool), count):
        exact = probability_of(set(chosen), expected)
        share = float((keys == sum(1 << rank for rank in chosen)).mean())
        assert abs(share - exact) < 5 * math.sqrt(exact * (1 - exact) / number) + 1e-4, (chosen, share, exact)


def test_a_pool_that_is_too_small_is_given_whole() -> None:
    for law in [*LAWS, TOP]:
        found = draws(law, 3, 2, 10)
        assert found.tolist() == [[True, True, False, False, False]] * 10
        assert not draws(law, 3, 0, 4).any()


def test_the_hardest_need_no_luck() -> None:
    assert draws("top", 2, 5, 3).tolist() == [[True, True, False, False, False]] * 3


def test_weights_beyond_all_measure() -> None:
    """One rank outweighs the others by more than a float holds: it is drawn first, and the others all the same."""
    for law in (Simans(1e300), Softmax(1e-300)):
        assert draws(law, 5, 5, 4).all()
    assert draws(Softmax(1e-9), 1, 5, 50)[:, 0].all()
    scores = np.array([[0.5, np.nan, 0.2]], dtype=np.float32)
    lowest, random = np.array([0.1], dtype=np.float32), np.full((1, 3), 0.5)
    with pytest.raises(BadInput, match="not a finite number"):
        drawn_sets(Softmax(0.1), scores, lowest, np.array([3]), 1, random)
    drawn_sets(Softmax(0.1), scores, lowest, np.array([1]), 1, random)  # what is not there may be anything


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups, and several blocks per row group."""
    monkeypatch.setattr(negatives_module, "_GROUP", 16)
    monkeypatch.setattr(_mined, "_NEGATIVES_AT_ONCE", 6 * K)


class Written:
    """A table, its pairs, and what `miner export --format jsonl` makes of it."""

    def __init__(self, folder: Path, pairs: Pairs) -> None:
        self.folder, self.pairs = folder, pairs
        self.table, self.file = write_table(folder / "tables", pairs, "t2i"), write_pairs(folder / "pairs.csv", pairs)

    def run(self, out: Path, *options: object) -> Any:
        group = CommandGroup("miner", commands=[export])
        said = [self.table, "--pairs", self.file, "--format", "jsonl", "--out", out, "--force", *options]
        return CliRunner().invoke(group, ["export", *map(str, said)])

    def lines(self, *options: object) -> list[dict[str, Any]]:
        out = self.folder / "out.jsonl"
        result = self.run(out, *options)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in out.read_text().splitlines()]

    def refused(self, *options: object) -> str:
        out = self.folder / "refused.jsonl"
        result = self.run(out, *options)
        assert result.exit_code == 3, result.output
        assert not out.exists()
        return " ".join(result.output.split())


@pytest.fixture
def written(problem: Any, tmp_path: Path, small: None) -> Written:
    return Written(tmp_path, problem().pairs)


@pytest.mark.parametrize(
    "law",
    [
        ("uniform",),
        ("log-uniform",),
        ("simans", "--simans-a", 50, "--simans-b", 0.1),
        ("temperature", "--temperature", 0.05),
    ],
    ids=lambda law: law[0],
)
def test_what_is_drawn_is_of_the_table(written: Written, law: tuple[object, ...], monkeypatch: Any) -> None:
    """Names, scores and ranks are the table's, hardest first, from the pool alone; seeded; blocks leave no trace."""
    whole = {line["anchor_id"]: line for line in written.lines()}
    assert {len(line["negatives"]) for line in whole.values()} == {0, 1, 2, K}
    options = ("--sample", *law, "--negatives", 2, "--skip", 1, "--pool", 3)
    drawn = written.lines(*options, "--seed", 7)
    assert [line["anchor_id"] for line in drawn] == list(whole)
    for line in drawn:
        there = whole[line["anchor_id"]]["negatives"]
        ranks = [each["rank"] for each in line["negatives"]]
        assert ranks == sorted(set(ranks))
        assert set(ranks) <= {1, 2, 3}
        assert line["negatives"] == [there[rank] for rank in ranks]
        assert len(ranks) == min(2, max(len(there) - 1, 0))
        assert line["positives"] == whole[line["anchor_id"]]["positives"]
    assert len({tuple(each["rank"] for each in line["negatives"]) for line in drawn}) > 3
    assert written.lines(*options, "--seed", 7) == drawn
    assert written.lines(*options, "--seed", 8) != drawn
    monkeypatch.setattr(_mined, "_NEGATIVES_AT_ONCE", 1000 * K)
    assert written.lines(*options, "--seed", 7) == drawn
    monkeypatch.setattr(negatives_module, "_GROUP", 1000)
    written.table = write_table(written.folder / "other", written.pairs, "t2i")
    assert written.lines(*options, "--seed", 7) == drawn


def test_settings_say_how(written: Written) -> None:
    """Every setting changes what is drawn, and the laws differ."""
    base = ("--negatives", 1, "--sample")
    each = [
        (*base, "uniform"),
        (*base, "uniform", "--pool", 2),
        (*base, "uniform", "--skip", 2),
        (*base, "log-uniform"),
        (*base, "simans", "--simans-a", 50),
        (*base, "simans", "--simans-a", 500),
        (*base, "simans", "--simans-a", 50, "--simans-b", 0.4),
        (*base, "temperature", "--temperature", 0.05),
        (*base, "temperature", "--temperature", 0.5),
        ("--negatives", 1),
        ("--negatives", 1, "--skip", 1),
    ]
    found = [json.dumps(written.lines(*options)) for options in each]
    assert len(set(found)) == len(found)
    last = written.lines("--negatives", 1, "--skip", 1)
    assert {each["rank"] for line in last for each in line["negatives"]} == {1}


def test_what_cannot_be_drawn_is_refused(written: Written) -> None:
    said = written.refused("--sample", "uniform", "--negatives", 3, "--pool", 2)
    assert "of this table's 5 negatives per anchor, 2 are to be drawn from and 3 to be drawn" in said
    assert "5 negatives per anchor, 0 are to be drawn from and 1 to be drawn" in written.refused("--skip", 5)
    assert "5 negatives per anchor, 3 are to be drawn from and 4 " in written.refused("--skip", 2, "--negatives", 4)
    assert "needs --simans-a" in written.refused("--sample", "simans")
    assert "needs --temperature" in written.refused("--sample", "temperature")
    assert "--pool is for what is drawn" in written.refused("--pool", 2)
    assert "--seed is for what is drawn" in written.refused("--seed", 2)
    assert "--simans-b is for --sample simans" in written.refused("--sample", "uniform", "--simans-b", 1)
    assert "--temperature is for --sample temperature" in written.refused("--sample", "uniform", "--temperature", 1)
