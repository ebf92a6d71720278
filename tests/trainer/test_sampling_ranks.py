"""Every law of drawing ranks against a slow loop over its formula, with the same uniform numbers; its settings."""

from __future__ import annotations

import math
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miner.artifacts import ranks
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Pairs
from miner.artifacts.ranks import Scored, Simans, Softmax, drawn_ranks
from trainer import losses, models, sampling
from trainer.analyze import analyze
from trainer.data import Dataset
from trainer.training import EpochLog, FitConfig, fit

LAWS: list[Any] = ["untied", "top", "log_uniform", Simans(50.0), Simans(20.0, -0.1), Softmax(0.05)]
BY_SCORE = [law for law in LAWS if not isinstance(law, str)]


def table_of(scores: Any, lowest_positive: Any, negatives: Any = None, direction: Any = "i2t") -> NegativeTable:
    """A table with these scores, nan beyond what was found."""
    scores = np.asarray(scores)
    rows = np.where(np.isnan(scores), -1, np.arange(scores.shape[1])) if negatives is None else negatives
    count = (rows >= 0).sum(1)
    return NegativeTable(direction, scores.shape[1], rows, scores, np.asarray(lowest_positive), count, {}, "")


def scored(tables: dict[Any, Any], seed: int = 0, ties: bool = True) -> dict[Any, NegativeTable]:
    """The tables with scores, hardest first and some of them equal, and lowest positives among these."""
    rng = np.random.default_rng(seed)
    found = {}
    for direction, table in tables.items():
        scores = np.sort(rng.uniform(0.2, 0.9, table.negatives.shape).astype(np.float32), axis=1)[:, ::-1]
        scores = np.round(scores, 1).astype(np.float32) if ties else scores
        lowest = rng.uniform(0.3, 0.8, len(scores)).astype(np.float32)
        scores = np.where(table.negatives >= 0, scores, np.nan)
        found[direction] = table_of(scores, lowest, table.negatives, direction)
    return found


def probabilities(law: Any, scores: list[float], positive: float) -> list[float]:
    """P(r) for r = 0 .. n - 1, as the formula is written."""
    n = len(scores)
    if law == "untied":
        return [1 / n] * n
    if law == "top":
        return [1.0] + [0.0] * (n - 1)
    if law == "log_uniform":
        return [1 / ((r + 1) * sum(1 / i for i in range(1, n + 1))) for r in range(n)]
    if isinstance(law, Simans):
        weights = [math.exp(-law.a * (s - positive - law.b) ** 2) for s in scores]
    else:
        weights = [math.exp(s / law.temperature) for s in scores]
    return [weight / math.fsum(weights) for weight in weights]


def rank_by_loop(law: Any, scores: list[float], positive: float, u: float) -> int:
    reached = 0.0
    for rank, probability in enumerate(probabilities(law, scores, positive)):
        reached += probability
        if reached > u:
            return rank
    raise AssertionError((law, scores, u))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_draw_is_the_one_of_a_slow_loop(toys: SimpleNamespace, law: Any) -> None:
    """Unequal pools, anchors with fewer negatives than the pool or none after those passed over, ties."""
    pairs = toys.pairs()
    tables = scored(toys.tables(pairs))
    for epoch, (pool, skip) in enumerate([((300, 60), (0, 0)), ((4, 3), (0, 0)), ((3, 8), (2, 1)), ((1, 2), (7, 9))]):
        found = sampling.draw(
            pairs, tables, pool_text=pool[0], pool_image=pool[1], skip_text=skip[0], skip_image=skip[1],
            ranks=law, seed=4, epoch=epoch, partners=False,
        )  # fmt: skip
        random = sampling.generator(4, "ranks", epoch).random((2, pairs.num_pairs))
        for pair in range(pairs.num_pairs):
            for side, (direction, anchor, drawn) in enumerate(
                [("i2t", pairs.image_rows[pair], found.text[pair]), ("t2i", pairs.text_rows[pair], found.image[pair])]
            ):
                table = tables[direction]
                last = min(skip[side] + pool[side], table.num_negatives[anchor])
                left = table.scores[anchor, skip[side] : last].tolist()
                if not left:
                    assert drawn == -1
                    continue
                rank = rank_by_loop(law, left, float(table.lowest_positive[anchor]), float(random[side, pair]))
                assert drawn == table.negatives[anchor, skip[side] + rank]


@pytest.mark.parametrize("law", [*LAWS, Simans(1e3, 0.2), Softmax(0.01)], ids=str)
def test_the_steps_of_the_distribution_are_where_the_formula_has_them(law: Any) -> None:
    """Just below each P(0) + ... + P(r) rank r is drawn or an earlier one, just above it a later one."""
    scores = [0.9, 0.85, 0.85, 0.6, 0.41, 0.4, -0.3]
    table = table_of([scores], [0.6])
    steps = np.cumsum(probabilities(law, scores, 0.6))

    def drawn(u: float) -> int:
        return int(drawn_ranks(law, table, np.array([0]), np.array([7]), 0, np.array([u]))[0])

    for rank, step in enumerate(steps.tolist()):
        if step < 1 - 1e-6:
            assert drawn(max(step - 1e-9, 0.0)) <= rank < drawn(step + 1e-9)
    assert 0 <= drawn(0.0) <= drawn(float(np.nextafter(1.0, 0.0))) <= 6


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_over_epochs_ranks_come_as_often_as_the_formula_says(toys: SimpleNamespace, law: Any) -> None:
    """Chi-square over many epochs, in both directions; and the two draws of a pair are independent."""
    ids = [str(row) for row in range(40)]
    pairs = Pairs.from_ids(ids, ids, list(zip(ids, ids, strict=True)))
    rows = ((np.arange(40)[:, None] + 1 + np.arange(6)[None]) % 40).astype(np.int32)
    scores, lowest = np.tile(np.float32([0.8, 0.7, 0.7, 0.6, 0.55, 0.5]), (40, 1)), np.full(40, 0.65, np.float32)
    tables: Any = {d: table_of(scores, lowest, rows, d) for d in ("i2t", "t2i")}
    together = np.zeros((6, 6))
    for epoch in range(300):
        found = sampling.draw(pairs, tables, pool_text=6, pool_image=6, ranks=law, seed=1, epoch=epoch)
        np.add.at(together, ((found.text - pairs.image_rows - 1) % 40, (found.image - pairs.text_rows - 1) % 40), 1)
    expected = np.array(probabilities(law, scores[0].tolist(), float(lowest[0])))
    cells = together.sum() * np.outer(expected, expected)
    assert together[cells == 0].sum() == 0
    likely = cells > 5
    chi_square = ((together[likely] - cells[likely]) ** 2 / cells[likely]).sum()
    # Mean and standard deviation of chi-square with as many degrees of freedom as there are cells.
    assert chi_square < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_top_is_the_hardest_left_in_every_epoch_and_a_pool_of_one(toys: SimpleNamespace) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    given = {"pool_text": 300, "pool_image": 60, "skip_text": 1, "skip_image": 2}
    found = [sampling.draw(pairs, tables, **given, ranks="top", seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (7, 0))]
    expected = tables["i2t"].negatives[pairs.image_rows, 1], tables["t2i"].negatives[pairs.text_rows, 2]
    for each in found:
        assert np.array_equal(each.text, expected[0])
        assert np.array_equal(each.image, expected[1])
    alone = sampling.draw(pairs, tables, **{**given, "pool_text": 1, "pool_image": 1}, ranks="untied", seed=0, epoch=0)
    for name in ("text", "image", "partner_image", "partner_text", "text_share", "image_share"):
        assert np.array_equal(getattr(found[0], name), getattr(alone, name))


def test_published_and_even_draws_stay_as_they_were(toys: SimpleNamespace) -> None:
    """The arithmetic of the first version of `draw`, and tables without scores do for all that draw by rank."""
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    for law in ("tied", "untied"):
        found = sampling.draw(pairs, tables, pool_text=5, pool_image=3, skip_text=1, ranks=law, seed=2, epoch=9)
        random = np.random.default_rng([2, 2, 9]).random((2, pairs.num_pairs))
        text_pool = np.clip(tables["i2t"].num_negatives[pairs.image_rows] - 1, 0, 5)
        image_pool = np.clip(tables["t2i"].num_negatives[pairs.text_rows], 0, 3)
        text_rank = (random[0] * text_pool).astype(np.int64)
        image_rank = (random[1] * image_pool).astype(np.int64)
        if law == "tied":
            shared = text_rank * image_pool // np.maximum(text_pool, 1)
            image_rank = np.where(text_pool > 0, shared, (random[0] * image_pool).astype(np.int64))
        text = tables["i2t"].negatives[pairs.image_rows, np.where(text_pool > 0, 1 + text_rank, 0)]
        image = tables["t2i"].negatives[pairs.text_rows, np.where(image_pool > 0, image_rank, 0)]
        assert np.array_equal(found.text, np.where(text_pool > 0, text, -1))
        assert np.array_equal(found.image, np.where(image_pool > 0, image, -1))
        assert found.text.dtype == np.int64


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_skipping_everything_leaves_nothing(toys: SimpleNamespace, law: Any) -> None:
    pairs = toys.pairs()
    found = sampling.draw(
        pairs,
        scored(toys.tables(pairs)),
        pool_text=4,
        pool_image=4,
        skip_text=8,
        skip_image=50,
        ranks=law,
        seed=0,
        epoch=0,
    )
    assert (found.text == -1).all()
    assert (found.image == -1).all()
    assert (found.text_share == 0).all()


@pytest.mark.parametrize("law", BY_SCORE, ids=str)
@pytest.mark.parametrize("cells", [1, 40, 1000])
def test_blocks_do_not_show(toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, law: Any, cells: int) -> None:
    pairs = toys.pairs()
    tables = scored(toys.tables(pairs), ties=False)
    settings = {"pool_text": 7, "pool_image": 5, "ranks": law, "seed": 0, "epoch": 0}
    whole = sampling.draw(pairs, tables, **settings)
    monkeypatch.setattr(ranks, "_CELLS", cells)
    cut = sampling.draw(pairs, tables, **settings)
    assert np.array_equal(whole.text, cut.text)
    assert np.array_equal(whole.image, cut.image)


@pytest.mark.parametrize("law", BY_SCORE, ids=str)
def test_memory_is_that_of_a_block(law: Any) -> None:
    rng = np.random.default_rng(0)
    table = table_of(rng.random((500, 300)), rng.random(500))
    anchors, pool, random = rng.integers(500, size=100_000), np.full(100_000, 300), rng.random(100_000)
    tracemalloc.start()
    drawn_ranks(law, table, anchors, pool, 0, random)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All scores at once were 229 MiB in float64, and the weights and their sums as much again.
    assert peak < 80 * 2**20


def alone(law: Any, scores: list[float], u: list[float], positive: float = 0.0, skip: int = 0) -> list[int]:
    """Ranks of one anchor with these scores for some uniform numbers."""
    table = table_of([scores], [positive])
    size = np.full(len(u), len(scores) - skip)
    return drawn_ranks(law, table, np.zeros(len(u), dtype=int), size, skip, np.array(u)).tolist()


def test_scores_far_apart_are_weighed_without_overflow() -> None:
    most = float(np.nextafter(1.0, 0.0))
    # The hardest alone, and those tied with it evenly.
    assert alone(Softmax(1e-3), [3e38, 1.0, -3e38], [0.0, 0.5, most]) == [0, 0, 0]
    assert alone(Softmax(1e-3), [5e3, 5e3, -5e3, -5e3], [0.0, 0.49, 0.51, most]) == [0, 0, 1, 1]
    assert alone(Softmax(1e-3), [5e3, 0.0, 0.0], [0.0, most], skip=1) == [0, 1]
    assert alone(Softmax(1e-3), [-3e38, -3e38], [0.4, 0.6]) == [0, 1]
    assert alone(Softmax(1e300), [2.0, 1.0, -1e3], [0.3, 0.4, 0.7]) == [0, 1, 2]
    # Of those all far from the positive the nearest, though every weight as written is 0.
    assert alone(Simans(1e6), [3e38, 9.0, 8.0, -3e38], [0.0, most]) == [2, 2]
    assert alone(Simans(1e6), [9.0, -9.0], [0.4, 0.6]) == [0, 1]
    assert alone(Simans(1e6, -3.0), [9.0, -9.0], [0.4, 0.6]) == [1, 1]
    # One that is infinitely far down is never drawn.
    assert alone(Softmax(0.1), [0.3, 0.3, -math.inf], [0.0, 0.6, most]) == [0, 1, 1]


@pytest.mark.parametrize(
    ("law", "scores", "positive"),
    [
        (Softmax(0.1), [math.inf, 0.0], 0.0),
        (Softmax(0.1), [0.5, math.nan], 0.0),
        (Softmax(1e-320), [0.5, 0.4], 0.0),
        (Simans(1.0), [0.5, 0.4], math.nan),
        (Simans(1.0), [0.5, 0.4], math.inf),
        (Simans(1.0, 1e300), [0.5, 0.4], 0.0),
    ],
)
def test_what_cannot_be_weighed_is_refused(law: Any, scores: list[float], positive: float) -> None:
    with pytest.raises(BadInput, match=r"cannot be weighed by (Softmax|Simans)\(.*not a finite number"):
        alone(law, scores, [0.5], positive)


@pytest.mark.parametrize("law", BY_SCORE, ids=str)
def test_a_table_without_scores_is_refused_where_they_are_wanted(toys: SimpleNamespace, law: Any) -> None:
    pairs = toys.pairs()
    tables = toys.tables(pairs)
    assert not isinstance(tables["i2t"], Scored)
    with pytest.raises(BadInput, match="drawn by score, but the negative table has no `scores`"):
        sampling.draw(pairs, tables, pool_text=3, pool_image=3, ranks=law, seed=0, epoch=0)


SETTINGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {},
    "top": {},
    "log_uniform": {},
    "simans": {"simans_a": 50.0, "simans_b": -0.1},
    "temperature": {"temperature": 0.05},
}


@pytest.mark.parametrize("name", losses.losses())
@pytest.mark.parametrize("law", SETTINGS)
def test_settings_name_a_law_and_write_down_what_it_reads(name: str, law: str) -> None:
    config = losses.configure(name, {"ranks": law, **SETTINGS[law]})
    expected = {"simans": Simans(50.0, -0.1), "temperature": Softmax(0.05)}
    assert config.law == expected.get(law, law)
    written = config.model_dump(mode="json")
    assert {key: written[key] for key in written if key in ("simans_a", "simans_b", "temperature")} == SETTINGS[law]
    assert losses.configure(name, written) == config


@pytest.mark.parametrize("name", losses.losses())
@pytest.mark.parametrize("law", SETTINGS)
def test_a_law_is_nothing_to_the_online_rounds(name: str, law: str) -> None:
    plain = losses.configure(name).online
    config = losses.configure(name, {"ranks": law, **SETTINGS[law]}).online
    assert config == plain
    assert config.model_dump() == plain.model_dump()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ranks": "simans"}, 'ranks = "simans" needs simans_a'),
        ({"ranks": "simans", "simans_b": 0.1}, 'ranks = "simans" needs simans_a'),
        ({"ranks": "temperature"}, 'ranks = "temperature" needs temperature'),
        ({"simans_a": 50.0}, 'simans_a is read with ranks = "simans" alone, but ranks is "tied"; leave it out, or set'),
        ({"ranks": "top", "simans_b": 0.1}, 'simans_b is read with ranks = "simans" alone'),
        ({"ranks": "simans", "simans_a": 1.0, "temperature": 1.0}, 'temperature is read with ranks = "temperature"'),
        ({"ranks": "temperature", "temperature": 0.0}, "temperature = 0.0: Input should be greater than 0"),
        ({"ranks": "simans", "simans_a": -1.0}, "simans_a = -1.0: Input should be greater than 0"),
        ({"ranks": "hardest"}, "ranks = 'hardest': Input should be 'tied'"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        losses.configure("aoq", settings)
    assert said in str(refused.value)


@pytest.mark.parametrize("law", SETTINGS)
def test_the_stratified_correction_wants_even_draws(law: str) -> None:
    settings = {"offline": "softmax", "correction": "stratified", "ranks": law, **SETTINGS[law]}
    if law in ("tied", "untied", "top"):
        assert losses.configure("ntxent", settings).law == law
    else:
        with pytest.raises(BadInput, match="the negatives of a pool to be drawn evenly"):
            losses.configure("ntxent", settings)


@pytest.mark.parametrize("law", SETTINGS)
@pytest.mark.usefixtures("one_thread")
def test_a_model_trains_and_is_counted_with_every_law(dataset: Dataset, toys: SimpleNamespace, law: str) -> None:
    tables: Any = scored(toys.tables(dataset.pairs))
    loss = losses.configure("aoq", {"h_t": 6, "h_v": 4, "skip_v": 1, "ranks": law, **SETTINGS[law]})
    model = models.configure("vsepp", {"dim": 16, "word_dim": 8})
    config = FitConfig(epochs=3, batch_size=16, lr=5e-3, warmup_epochs=1, threads=1)
    logs: list[EpochLog] = []
    trained = fit(dataset, model, loss, config, tables=tables, progress=logs.append)
    assert all(log.offline_hardness is not None and math.isfinite(log.loss) for log in logs[1:])
    rows = analyze(dataset, trained, loss, tables=tables, batch_size=16)
    assert {"i2t", "t2i"} <= {row["direction"] for row in rows if row["negatives"] == "offline"}
