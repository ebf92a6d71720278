"""`miner calibrate`: every figure against loops, intervals against known rates over many seeds, and wrong input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from miner import calibration, filters, judged, ladder
from miner.artifacts.candidates import CANDIDATES, write_candidates
from miner.artifacts.command import CommandGroup
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.artifacts.store import LocalStore
from miner.calibration import Positives, Source
from miner.commands.calibrate import calibrate
from miner.spoken import configured

FLICKR8K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "flickr8k"
WIDTH, K = 14, 5


def run(*arguments: object):
    group = CommandGroup("miner", commands=[calibrate])
    return CliRunner().invoke(group, ["calibrate", *map(str, arguments)])


def told(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["directions"]


@dataclass
class Given:
    """A folder of vectors, candidates of one direction, and by anchor row what the oracle of mining says of them."""

    folder: Path
    candidates: Path
    pairs: Pairs
    direction: Direction
    truth: dict[int, tuple[list[int], list[float], float]]
    positives: dict[int, list[float]]

    def ids(self, anchor: int, negative: int) -> dict[str, str]:
        one, other = sides(self.direction)
        return {f"{one}_id": self.pairs.ids(one)[anchor], f"{other}_id": self.pairs.ids(other)[negative]}

    def judge(self, verdicts: dict[tuple[int, int], float], name: str = "judged.csv", sep: str = ",") -> Path:
        path = self.folder.parent / name
        rows = [self.ids(a, n) | {"match": match} for (a, n), match in verdicts.items()]
        pd.DataFrame(rows).to_csv(path, index=False, sep=sep)
        return path


def block_of(pairs: Pairs, direction: Direction, truth: dict[int, Any], width: int) -> NegativeBlock:
    order = pairs.order(sides(direction)[0])
    negatives = np.full((len(order), width), -1, dtype=np.int32)
    scores = np.full((len(order), width), np.nan, dtype=np.float32)
    for at, row in enumerate(order.tolist()):
        found, values, _ = truth[row]
        negatives[at, : len(found)], scores[at, : len(found)] = found, values
    lowest = np.array([truth[row][2] for row in order.tolist()], dtype=np.float32)
    return NegativeBlock(order, negatives, scores, lowest, dict.fromkeys(order.tolist(), "made so"))


@pytest.fixture
def given(problem, oracle, tmp_path, monkeypatch) -> Callable[..., Given]:
    monkeypatch.setattr(calibration, "_LEAST_HIDDEN", 1)

    def make(direction: Direction = "i2t", width: int = WIDTH, **how: Any) -> Given:
        made = problem(**how)
        truth = oracle(made, direction, width)
        draft = Draft(LocalStore(tmp_path / "candidates"), direction, CANDIDATES, {})
        block = block_of(made.pairs, direction, truth, width)
        for _ in write_candidates(draft, [block], made.pairs, direction, width, {"metric": "ip"}):
            pass
        vectors, gallery = (each.astype(np.float64) for each in made.vectors(direction))
        positives: dict[int, list[float]] = {row: [] for row in truth}
        for image, text in zip(made.pairs.image_rows.tolist(), made.pairs.text_rows.tolist(), strict=True):
            a, g = (image, text) if direction == "i2t" else (text, image)
            positives[a].append(float(np.float32(math.fsum((vectors[a] * gallery[g]).tolist()))))
        folder = made.write(tmp_path / "vectors")
        return Given(folder, tmp_path / "candidates", made.pairs, direction, truth, positives)

    return make


def drops(rule: str | None, score: float, lowest: float) -> bool:
    if rule is None:
        return False
    name, _, setting = rule.partition(":")
    value = float(setting.partition("=")[2])
    if name == "relative-margin":
        return score > lowest - value * abs(lowest)
    if name == "absolute-margin":
        return score > lowest - value
    assert name == "max-score"
    return score > value


def slow(made: Given, rule: str | None, k: int) -> dict[str, float]:
    """The shares of one rung by loops over candidates and positives."""
    total = kept = hardest = hardest_kept = full = hidden = hidden_gone = 0
    for anchor, (_, scores, lowest) in made.truth.items():
        left = [not drops(rule, score, lowest) for score in scores]
        total, kept = total + len(scores), kept + sum(left)
        hardest, hardest_kept = hardest + len(scores[:k]), hardest_kept + sum(left[:k])
        full += sum(left) >= k
        own = made.positives[anchor]
        for at, score in enumerate(own):
            others = own[:at] + own[at + 1 :]
            if others and (len(scores) < k or score >= scores[k - 1]):
                hidden += 1
                hidden_gone += drops(rule, score, min(others))
    return {
        "candidates_kept": kept / total,
        "hardest_kept": hardest_kept / hardest,
        "anchors_with_k": full / len(made.truth),
        "positives_dropped": hidden_gone / hidden,
    }


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_every_rung_equals_a_slow_loop(given, direction, grid):
    made = given(direction, grid=grid)
    said = told(made.folder, "--candidates", made.candidates, "--k", K)[direction]
    assert (said["k"], said["num_candidates"], said["anchors"]) == (K, WIDTH, len(made.truth))
    assert said["candidates"] == sum(len(found) for found, _, _ in made.truth.values())
    assert len(said["ladder"]) >= 10
    assert said["ladder"][0]["rule"] is None
    for rung in said["ladder"]:
        for name, value in slow(made, rung["rule"], K).items():
            assert rung[name] == pytest.approx(value, abs=2e-6), (rung["rule"], name)
        assert rung["false_negatives"] is None
    assert said["judged"] is None
    by_rank = {rank: [scores[rank - 1] for _, scores, _ in made.truth.values()] for rank in (1, 5, 10, WIDTH)}
    samples = {f"candidate {rank}": scores for rank, scores in by_rank.items()}
    samples["lowest positive"] = [lowest for _, _, lowest in made.truth.values()]
    samples["all positives"] = [score for own in made.positives.values() for score in own]
    assert said["scores"].keys() == samples.keys()
    for name, scores in samples.items():
        expected = {f"{q:g}": np.quantile(scores, q) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
        assert said["scores"][name] == pytest.approx(expected, abs=2e-6)


def test_a_ladder_fits_the_scale_of_the_model():
    lowest = np.linspace(100, 300, 201).astype(np.float32)
    rungs = {rung.rule: rung for rung in ladder.ladder(lowest)}
    assert next(iter(rungs)) == ""
    assert rungs["relative-margin:margin=0.05"].highest(np.float32([-10, 10])).tolist() == [-10.5, 9.5]
    assert "absolute-margin:margin=10" in rungs
    assert rungs["max-score:score=290"].note == "95% of the lowest positives score less"
    same = ladder.ladder(np.zeros(5, dtype=np.float32))
    assert len({rung.rule for rung in same}) == len(same)


def test_every_rung_drops_what_its_rule_drops():
    """The same candidates, also where a score is the bound itself."""
    rng = np.random.default_rng(0)
    lowest = np.round(rng.normal(0.2, 0.3, 60), 2).astype(np.float32)
    scores = np.round(rng.normal(0.2, 0.3, (60, 30)), 2).astype(np.float32)
    scores = -np.sort(-scores, axis=1)
    block = NegativeBlock(np.arange(60), np.tile(np.arange(30, dtype=np.int32), (60, 1)), scores, lowest)
    for rung in ladder.ladder(lowest)[1:]:
        rule, config = configured(filters, "rule", rung.rule)
        dropped = rule.prepare(config, None)(block, 0)
        assert np.array_equal(dropped, scores > rung.highest(lowest)[:, None]), rung.rule


def test_a_table_gives_the_same_as_candidates(given, tmp_path):
    made = given("t2i")
    block = block_of(made.pairs, "t2i", made.truth, WIDTH)
    store = Draft(LocalStore(tmp_path / "tables"), "t2i", NEGATIVES, {})
    write_negatives(store, [block], made.pairs, "t2i", WIDTH, {"metric": "ip"})
    table = tmp_path / "tables" / "t2i"
    bare = tmp_path / "bare.parquet"
    pd.read_parquet(table / "negatives.parquet").to_parquet(bare, row_group_size=40)
    judgements = made.judge({(a, found[0]): a % 2 for a, (found, _, _) in made.truth.items()})
    expected = told(made.folder, "--candidates", made.candidates, "--judgements", judgements)["t2i"]
    assert expected["k"] == WIDTH // 2
    for path in (table, table.parent, bare, made.candidates / "t2i"):
        said = told(made.folder, "--candidates", path, "--judgements", judgements)["t2i"]
        assert {**said, "candidates_from": "", "notes": []} == {**expected, "candidates_from": ""}
        assert bool(said["notes"]) == (path != made.candidates / "t2i")


def test_scores_of_a_model_come_without_all_positives(given, tmp_path):
    made = given()
    block = block_of(made.pairs, "i2t", made.truth, WIDTH)
    other = NegativeBlock(
        block.anchor_rows, block.negatives, block.scores + 1, block.lowest_positive + 9, block.reasons
    )
    draft = Draft(LocalStore(tmp_path / "scan"), "i2t", NEGATIVES, {})
    write_negatives(draft, [other], made.pairs, "i2t", WIDTH, {"metric": "scan"})
    said = told(made.folder, "--candidates", tmp_path / "scan", "--k", K)["i2t"]
    assert "all positives" not in said["scores"]
    assert said["positives_dropped_are"] == "positives of other anchors"
    lowest = [np.float32(value) + np.float32(9) for _, _, value in made.truth.values()]
    for rung in said["ladder"]:
        gone = total = 0
        for _, scores, own in made.truth.values():
            for stranger in lowest:
                if stranger >= scores[K - 1] + 1:
                    total += 1
                    gone += drops(rung["rule"], float(stranger), float(np.float32(own) + np.float32(9)))
        assert rung["positives_dropped"] == pytest.approx(gone / total, abs=0.01)


def slow_weights(ranks: list[int], there: list[int]) -> list[float]:
    """Bands of ranks joined until each has 20, by hand."""
    edges = [e for e in (0, 1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94, 141, 211) if e < len(there)]
    bands: list[list[int]] = []
    current: list[int] = []
    for start, stop in zip(edges, [*edges[1:], len(there)], strict=True):
        current += range(start, stop)
        if sum(rank in current for rank in ranks) >= 20:
            bands.append(current)
            current = []
    if current:
        if bands:
            bands[-1] = bands[-1] + current
        else:
            bands.append(current)
    found = []
    for rank in ranks:
        band = next(band for band in bands if rank in band)
        found.append(sum(there[r] for r in band) / sum(other in band for other in ranks))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 250))
    there = np.sort(rng.integers(0, 500, width))[::-1]
    ranks = np.minimum(rng.geometric(0.02, int(rng.integers(1, 300))) - 1, width - 1)
    assert judged.weights(ranks, there) == pytest.approx(slow_weights(ranks.tolist(), there.tolist()))


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_judged_shares_equal_a_slow_loop(given, direction):
    made = given(direction)
    rng = np.random.default_rng(0)
    verdicts: dict[tuple[int, int], float] = {}
    others = len(made.pairs.ids(sides(direction)[1]))
    for anchor, (found, _, _) in made.truth.items():
        for rank, negative in enumerate(found):
            if rng.random() < 0.6:
                verdicts[anchor, negative] = float(rng.random() < 0.5 / (1 + rank))
        verdicts[anchor, int(rng.integers(others))] = 1.0  # some are positives, most no candidates
    own = set(zip(made.pairs.image_rows.tolist(), made.pairs.text_rows.tolist(), strict=True))
    judgements = made.judge(verdicts)
    said = told(made.folder, "--candidates", made.candidates, "--k", K, "--judgements", judgements)[direction]
    there = [sum(len(found) > rank for found, _, _ in made.truth.values()) for rank in range(WIDTH)]
    known = []
    for (anchor, negative), match in verdicts.items():
        found = made.truth[anchor][0]
        if negative in found:
            known.append((anchor, negative, found.index(negative), bool(match)))
    weight = dict(zip(known, slow_weights([rank for _, _, rank, _ in known], there), strict=True))
    for rung in said["ladder"]:
        left, gone_false, gone_true, all_false, all_true, many = [], 0.0, 0.0, 0.0, 0.0, set()
        for one in known:
            anchor, _, rank, match = one
            _, scores, lowest = made.truth[anchor]
            kept = [at for at, score in enumerate(scores) if not drops(rung["rule"], score, lowest)][:K]
            if rank in kept:
                left.append((weight[one], match))
                many.add(anchor)
            if rank < K:
                gone = drops(rung["rule"], scores[rank], lowest)
                all_false, all_true = all_false + weight[one] * match, all_true + weight[one] * (not match)
                gone_false += weight[one] * (match and gone)
                gone_true += weight[one] * (not match and gone)
        assert rung["false_negatives_dropped"] == pytest.approx(gone_false / all_false, abs=2e-6)
        assert rung["true_negatives_dropped"] == pytest.approx(gone_true / all_true, abs=2e-6)
        if not left:
            assert rung["false_negatives"] is None
            continue
        share = sum(w * m for w, m in left) / sum(w for w, _ in left)
        assert rung["false_negatives"]["share"] == pytest.approx(share, abs=2e-6)
        assert (rung["false_negatives"]["pairs"], rung["false_negatives"]["anchors"]) == (len(left), len(many))
        assert rung["false_negatives"]["low"] <= share <= rung["false_negatives"]["high"] + 1e-6
    about = said["judged"]
    links = [(a, n) if direction == "i2t" else (n, a) for a, n in verdicts]
    positives = sum(link in own for link in links)
    assert about["pairs"] == len(verdicts) - positives
    assert about["among_candidates"] == len(known)
    assert about["among_hardest"] == sum(rank < K for _, _, rank, _ in known)
    assert any(f"{positives} judged pairs are positives already" in note for note in about["notes"]) == bool(positives)


def test_when_everything_is_judged_the_shares_are_the_truth(given):
    made = given()
    rng = np.random.default_rng(3)
    verdicts = {(a, n): float(rng.random() < 0.2) for a, (found, _, _) in made.truth.items() for n in found}
    said = told(made.folder, "--candidates", made.candidates, "--k", K, "--judgements", made.judge(verdicts))["i2t"]
    for rung in said["ladder"]:
        matches = total = 0
        for anchor, (found, scores, lowest) in made.truth.items():
            kept = [n for n, score in zip(found, scores, strict=True) if not drops(rung["rule"], score, lowest)][:K]
            matches, total = matches + sum(verdicts[anchor, n] for n in kept), total + len(kept)
        if total:
            assert rung["false_negatives"]["share"] == pytest.approx(matches / total, abs=2e-6)


def test_the_interval_of_independent_pairs_is_wilsons():
    match = np.arange(200) < 30
    said = judged.estimate(match, np.ones(200), np.arange(200), np.arange(200))
    assert said is not None
    n, p, t = 199, 0.15, 1.972
    centre, half = p + t * t / (2 * n), t * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    expected = [(centre + sign * half) / (1 + t * t / n) for sign in (-1, 1)]
    assert [said.low, said.high] == pytest.approx(expected, abs=1e-4)
    twice = judged.estimate(np.repeat(match, 2), np.ones(400), np.repeat(np.arange(200), 2), np.arange(400))
    assert twice is not None
    assert [twice.low, twice.high] == pytest.approx(expected, abs=1e-4)  # an anchor's second pair tells nothing new
    by_item = judged.estimate(np.repeat(match, 2), np.ones(400), np.arange(400), np.repeat(np.arange(200), 2))
    assert by_item is not None
    assert [by_item.low, by_item.high] == pytest.approx(expected, abs=1e-4)


def test_the_interval_at_the_ends():
    units = np.repeat(np.arange(10), 6)
    none = judged.estimate(np.zeros(60, dtype=bool), np.ones(60), units, np.arange(60))
    assert none is not None
    assert (none.share, none.low, none.effective) == (0, 0, 10)
    assert none.high == pytest.approx(2.262**2 / (10 + 2.262**2), abs=1e-3)
    every = judged.estimate(np.ones(60, dtype=bool), np.ones(60), units, np.arange(60))
    assert every is not None
    assert every.low == pytest.approx(1 - none.high)
    assert every.high == 1
    one = judged.estimate(np.array([True]), np.ones(1), np.zeros(1, int), np.zeros(1, int))
    assert one is not None
    assert one.low < 0.05
    empty = np.empty(0, dtype=np.int64)
    assert judged.estimate(empty.astype(bool), np.empty(0), empty, empty) is None


def test_students_t():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 8: 2.306, 10: 2.228, 30: 2.042, 100: 1.984, 9999: 1.960}
    for freedom, value in table.items():
        assert judged._student(freedom) == pytest.approx(value, abs=1.5e-3)


def drawn(
    rng: np.random.Generator, anchors: int, rate: Callable[[np.ndarray], np.ndarray], spread: float, skewed: bool
):
    """(match, ranks, anchors, items) of judged pairs: 1 to 15 per anchor of 100 ranks, whose matches hang together."""
    of, ranks = [], []
    for anchor in range(anchors):
        many = int(rng.integers(1, 16))
        chances = 1 / np.arange(1, 101) if skewed else np.ones(100)
        ranks.append(rng.choice(100, many, replace=False, p=chances / chances.sum()))
        of.append(np.full(many, anchor))
    rank, anchor = np.concatenate(ranks), np.concatenate(of)
    # Mean 1, so that the rate over all anchors is what was asked for.
    easy = rng.gamma(1 / spread, spread, anchors)
    match = rng.random(len(rank)) < np.minimum(rate(rank) * easy[anchor], 1)
    return match, rank, anchor, np.arange(len(rank))


@pytest.mark.parametrize(("rate", "spread"), [(0.02, 1.0), (0.08, 1.0), (0.2, 0.5), (0.08, 0.01)])
def test_intervals_cover_a_known_rate(rate, spread):
    """95% intervals of 400 draws hold the true share in some 95%, although the pairs of an anchor are alike."""
    hits = plain = 0
    for seed in range(400):
        match, _, anchor, item = drawn(np.random.default_rng(seed), 120, lambda r: np.full(len(r), rate), spread, False)
        said = judged.estimate(match, np.ones(len(match)), anchor, item)
        assert said is not None
        hits += said.low <= rate <= said.high
        alone = judged.estimate(match, np.ones(len(match)), item, item)
        assert alone is not None
        plain += alone.low <= rate <= alone.high
    assert 0.925 <= hits / 400 <= 0.985
    if spread >= 0.5:
        assert plain < hits - 10  # as if all pairs were independent


def test_weights_undo_a_choice_by_rank():
    """People judge what ranks high, where matches are: unweighted the share is far too high."""
    hits = plain = 0
    rate = lambda rank: 0.3 / (1 + rank / 4)  # noqa: E731
    truth = float(rate(np.arange(100)).mean())
    for seed in range(200):
        match, rank, anchor, item = drawn(np.random.default_rng(seed), 200, rate, 0.3, True)
        weight = judged.weights(rank, np.full(100, 200))
        said, raw = (judged.estimate(match, w, anchor, item) for w in (weight, np.ones(len(match))))
        assert said is not None
        assert raw is not None
        hits += said.low <= truth <= said.high
        plain += raw.low <= truth <= raw.high
    assert hits / 200 >= 0.93
    assert plain / 200 < 0.1


def like(scores: dict[str, float], rule: str = "max-score:score=1", kept: float = 0.9) -> ladder.Rung:
    rung = ladder.Rung(rule, rule.partition(":")[0], 1.0)
    rung.shares = {"candidates_kept": kept, "hardest_kept": kept, "anchors_with_k": 1.0, **scores}
    rung.hardest = round(1000 * kept)
    return rung


def test_what_is_proposed_and_why():
    none = like({"positives_dropped": 0.0}, "", 1.0)
    good = like({"positives_dropped": 0.6}, "max-score:score=3", 0.9)
    harsh = like({"positives_dropped": 0.95}, "max-score:score=2", 0.3)
    starving = like({"positives_dropped": 1.0}, "max-score:score=1", 0.99)
    starving.shares["anchors_with_k"] = 0.5
    best, why = ladder.propose([none, good, harsh, starving], 50, 0, None)
    assert best is good
    assert "60% of what scores like a positive and 10% of the 50 hardest" in why
    assert "assuming that false negatives score like positives" in why
    best, why = ladder.propose([none, starving], 50, 0, None)
    assert (best, "search more candidates" in why) == (None, True)
    best, why = ladder.propose([none, like({"positives_dropped": 0.12})], 50, 0, None)
    assert (best, "no threshold on the score tells" in why) == (None, True)
    for rung, false, true in ((none, 0, 0), (good, 0.2, 0.1), (harsh, 0.9, 0.5)):
        rung.shares |= {"false_negatives_dropped": false, "true_negatives_dropped": true}
    best, why = ladder.propose([none, good, harsh], 50, 40, None)
    assert best is harsh
    assert "by the judged pairs" in why
    best, why = ladder.propose([none, good, harsh], 50, 19, None)
    assert best is good
    assert "19 judged matches" in why
    for rung, share in ((none, 0.3), (good, 0.12), (harsh, 0.04)):
        rung.false_negatives = judged.Share(share, share / 2, share * 2, 100, 50, 80)
    assert ladder.propose([none, good, harsh], 50, 40, 0.15)[0] is good
    assert ladder.propose([none, good, harsh], 50, 40, 0.05)[0] is harsh
    best, why = ladder.propose([none, good, harsh], 50, 40, 0.01)
    assert (best, "the least is 4.0%, max-score:score=2" in why) == (None, True)
    best, why = ladder.propose([none, good, harsh], 50, 40, 0.3)
    assert (best, "no rule is needed" in why) == (None, True)
    none.false_negatives = None
    with pytest.raises(BadInput, match="--target needs judged pairs"):
        ladder.propose([none, good], 50, 0, 0.1)


def test_a_proposal_drops_what_was_planted():
    """False negatives drawn as positives are, among candidates that score less: found without one judgement."""
    rng = np.random.default_rng(0)
    anchors, width, k = 500, 40, 20
    counts = rng.integers(1, 6, anchors)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    scores = rng.normal(0.7, 0.08, offsets[-1]).astype(np.float32)
    positives = Positives(offsets, scores)
    false = rng.random((anchors, width)) < 0.05
    values = np.where(false, rng.normal(0.7, 0.08, false.shape), rng.normal(0.4, 0.08, false.shape)).astype(np.float32)
    order = np.argsort(-values, axis=1, kind="stable")
    values, false = np.take_along_axis(values, order, 1), np.take_along_axis(false, order, 1)
    negatives = np.tile(np.arange(width, dtype=np.int32), (anchors, 1))
    blocks = [
        NegativeBlock(np.arange(at, at + 50), negatives[:50], values[at : at + 50], positives.lowest()[at : at + 50])
        for at in range(0, anchors, 50)
    ]
    source = Source("made", "i2t", width, "ip", lambda: iter(blocks))
    said = calibration.calibrate(source, positives.lowest(), positives, k, None)
    assert said.proposal is not None
    dropped = values > said.proposal.highest(positives.lowest())[:, None]
    assert dropped[false].mean() > 0.8
    assert dropped[~false].mean() < 0.1
    assert abs(dropped[false].mean() - (said.proposal.shares["positives_dropped"] or 0)) < 0.1
    everything = np.argwhere(np.ones_like(false))
    judgements = judged.Judged(everything[:, 0], everything[:, 1], false.ravel())
    known = calibration.calibrate(source, positives.lowest(), positives, k, judgements)
    assert known.rungs[0].false_negatives is not None
    assert known.rungs[0].false_negatives.share == pytest.approx(false[:, :k].mean())
    assert known.proposal is not None
    assert known.proposal.shares["false_negatives_dropped"] > 0.8
    # Several blocks or one: the same.
    whole = NegativeBlock(np.arange(anchors), negatives, values, positives.lowest())
    again = calibration.calibrate(
        Source("made", "i2t", width, "ip", lambda: iter([whole])), positives.lowest(), positives, k, judgements
    )
    assert again.numbers() == known.numbers()


def test_the_text_a_person_reads(given):
    made = given("t2i")
    plain = run(made.folder, "--candidates", made.candidates, "--k", K)
    assert plain.exit_code == 0, plain.output
    assert f"t2i: {len(made.truth)} anchors x {WIDTH} candidates, metric ip; k = {K} to keep" in plain.output
    for word in (
        "all positives",
        "lowest positive",
        "candidate 1 ",
        "relative-margin:margin=0.05",
        "proposal: ",
        "###",
    ):
        assert word in plain.output
    assert "false left" not in plain.output
    judgements = made.judge({(a, found[0]): a % 3 == 0 for a, (found, _, _) in made.truth.items()})
    full = run(made.folder, "--candidates", made.candidates, "--k", K, "--judgements", judgements)
    assert "false left (95%)" in full.output
    assert "seldom a random sample" in full.output
    assert max(map(len, full.output.splitlines()[:40])) < 160


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "anchor_id", "graded", "true", "raters"])
def test_forms_of_judgements(given, form):
    made = given()
    verdicts = {(a, found[r]): float((a + r) % 3 == 0) for a, (found, _, _) in made.truth.items() for r in (0, 3)}
    usual = made.judge(verdicts)
    expected = told(made.folder, "--candidates", made.candidates, "--judgements", usual)
    frame = pd.read_csv(usual, dtype=str)
    more: list[object] = []
    path = usual.with_name("other.csv")
    if form == "tsv":
        path = made.judge(verdicts, "judged.tsv", "\t")
    elif form == "parquet":
        path = usual.with_name("judged.parquet")
        frame.assign(match=frame.match.astype(float) > 0).to_parquet(path)
    else:
        if form == "anchor_id":
            frame = frame.rename(columns={"image_id": "anchor_id", "text_id": "negative_id"}).assign(note="x")
        elif form == "graded":
            frame["match"] = np.where(frame.match.astype(float) > 0, 4, 2)
            more = ["--match-at", 3]
        elif form == "true":
            frame["match"] = np.where(frame.match.astype(float) > 0, "True", "false")
        elif form == "raters":
            frame = pd.concat([frame, frame, frame.assign(match=1 - frame.match.astype(float))])
        frame.to_csv(path, index=False)
    assert told(made.folder, "--candidates", made.candidates, "--judgements", path, *more) == expected


def test_judgements_of_other_items_are_counted(given):
    made = given()
    verdicts = {(a, found[0]): 1.0 for a, (found, _, _) in made.truth.items()}
    path = made.judge(verdicts)
    path.write_text(path.read_text() + "who,what,1\n7919,what,0\n")
    said = told(made.folder, "--candidates", made.candidates, "--judgements", path)["i2t"]
    assert "2 of 42 judgements name other items and were left out" in said["judged"]["notes"]


BAD_JUDGEMENTS = {
    "no match": ("image_id,text_id\n1,2\n", "found the columns image_id, text_id; give the columns anchor_id"),
    "no ids": ("image,text,match\n1,2,1\n", "found the columns image, text, match"),
    "no row": ("image_id,text_id,match\n", "no row"),
    "empty": ("", "cannot be read as judgements"),
    "words": ("image_id,text_id,match\n0,t0,1\n0,t0,maybe\n", "row 2 below the head has match 'maybe'"),
    "a gap": ("image_id,text_id,match\n0,t0,\n", "row 1 below the head has match ''"),
    "NaN": ("image_id,text_id,match\n0,t0,nan\n", "row 1 below the head has match 'nan'"),
    "grades": ("image_id,text_id,match\n0,t0,1\n0,t0,4\n", "holds grades up to 4, not 0 and 1"),
    "no id": ("image_id,text_id,match\n,t0,1\n", "lacks its image_id or text_id"),
    "strangers": ("image_id,text_id,match\nwho,t0,1\n", "no row names two items of"),
    "ragged": ("image_id,text_id,match\n1,2,3,4\n", "cannot be read as judgements"),
}


@pytest.mark.parametrize("name", BAD_JUDGEMENTS)
def test_judgements_of_no_use(given, name):
    made = given()
    text, sentence = BAD_JUDGEMENTS[name]
    path = made.folder.parent / "bad.csv"
    path.write_text(text)
    result = run(made.folder, "--candidates", made.candidates, "--judgements", path)
    assert (result.exit_code, sentence in result.output) == (3, True), result.output
    assert result.output.strip().splitlines()[-1].startswith("error: ")


def test_wrong_use_and_wrong_folders(given, problem, tmp_path):
    made = given()
    assert run(made.folder).exit_code == 2
    assert run(made.folder, "--candidates", made.candidates, "--target", 0.1).exit_code == 2
    assert run(made.folder, "--candidates", made.candidates, "--match-at", 1).exit_code == 2
    assert run(made.folder, "--candidates", made.candidates, "--k", 0).exit_code == 2
    other = problem(seed=5).write(tmp_path / "other")
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in made.folder.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    np.save(changed / "texts.npy", np.load(changed / "texts.npy")[::-1].copy())
    (tmp_path / "nothing").mkdir()
    block = block_of(made.pairs, "i2t", made.truth, WIDTH)
    table = Draft(LocalStore(tmp_path / "tables"), "i2t", NEGATIVES, {})
    write_negatives(table, [block], made.pairs, "i2t", WIDTH, {"metric": "ip"})
    frame = pd.read_parquet(tmp_path / "tables" / "i2t" / "negatives.parquet")
    files = {
        "strange.parquet": frame.assign(negative_id="who"),
        "ranks.parquet": frame.assign(rank=frame["rank"] + 1),
        "far.parquet": frame.assign(rank=frame["rank"].astype("i8") * 2**40),
        "empty.parquet": frame.iloc[:0],
        "columns.parquet": frame.drop(columns="score"),
    }
    for name, changed_frame in files.items():
        changed_frame.to_parquet(tmp_path / name)
    mixed = frame.copy()
    mixed.loc[3, "negative_id"] = "who"
    mixed.to_parquet(tmp_path / "mixed.parquet")
    for folder, candidates, more, sentence in (
        (tmp_path / "none", made.candidates, [], "no such folder"),
        (made.folder, tmp_path / "none", [], "no such file or folder"),
        (made.folder, tmp_path / "nothing", [], "neither candidates nor a table here"),
        (made.folder, made.candidates, ["--direction", "t2i"], "holds i2t alone, but --direction t2i"),
        (
            made.folder,
            made.candidates,
            ["--k", WIDTH + 1],
            f"{WIDTH} candidates per anchor cannot give --k {WIDTH + 1}",
        ),
        (made.folder, made.candidates, ["--judgements", tmp_path / "none.csv"], "no such file"),
        (made.folder, made.candidates, ["--judgements", made.folder / "texts.npy"], "give judgements as .csv"),
        (other, made.candidates, [], "searched for other pairs"),
        (changed, made.candidates, [], "its lowest positives are not those of the vectors"),
        (changed, tmp_path / "tables", [], "its lowest positives are not those of the vectors"),
        (made.folder, tmp_path / "strange.parquet", [], "its ids fit neither side"),
        (made.folder, tmp_path / "mixed.parquet", [], "`miner check` shows which"),
        (made.folder, tmp_path / "ranks.parquet", [], "`miner check` shows where"),
        (made.folder, tmp_path / "far.parquet", [], "is beyond the gallery"),
        (made.folder, tmp_path / "empty.parquet", [], "no row"),
        (made.folder, tmp_path / "columns.parquet", [], "no column score"),
    ):
        result = run(folder, "--candidates", candidates, *more)
        assert (result.exit_code, sentence in result.output) == (3, True), result.output
        assert result.output.strip().splitlines()[-1].startswith("error: ")
    path = made.candidates / "i2t" / "scores.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(made.folder, "--candidates", made.candidates).exit_code == 4


@pytest.mark.heavy
def test_human_judgements_of_flickr8k(tmp_path, monkeypatch):
    """Canonical correlation of shared features; what people judged is in the table beside them."""
    if not (FLICKR8K / "human_judgments.tsv").is_file():
        pytest.skip(f"{FLICKR8K} is not here: human judgements of Flickr8k")
    from miner import index
    from miner.nearest import mine

    ids = (FLICKR8K / "ids.txt").read_text().split()
    row_of = {name: row for row, name in enumerate(ids)}
    test = [row_of[name] for name in (FLICKR8K / "test.txt").read_text().split()]
    train = [row_of[name] for name in (FLICKR8K / "train.txt").read_text().split() if name in row_of]
    images = np.load(FLICKR8K / "image_lite0_gap.npy").astype("f4")
    texts = np.load(FLICKR8K / "text_minilm.npy").astype("f4").reshape(len(ids), 5, -1)
    one, two = images[train] - images[train].mean(0), texts[train].mean(1) - texts[train].mean((0, 1))

    def whitened(x: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        return vectors / np.sqrt(values + 1e-3 * values.max()) @ vectors.T

    left, right = whitened(one), whitened(two)
    u, s, v = np.linalg.svd(left @ (one.T @ two / len(one)) @ right)
    x = (images[test] - images[train].mean(0)) @ left @ u[:, :128] * np.sqrt(s[:128])
    y = (texts[test].reshape(-1, texts.shape[2]) - texts[train].mean((0, 1))) @ right @ v[:128].T * np.sqrt(s[:128])
    folder = tmp_path / "vectors"
    folder.mkdir()
    for name, vectors in (("images", x), ("texts", y)):
        np.save(folder / f"{name}.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4"))
    names = [str(row) for row in test], [str(5 * row + c) for row in test for c in range(5)]
    for name, listed in zip(("image_ids.txt", "text_ids.txt"), names, strict=True):
        (folder / name).write_text("\n".join(listed) + "\n")
    links = "\n".join(f"{row},{5 * row + c}" for row in test for c in range(5))
    (folder / "pairs.csv").write_text(f"image_id,text_id\n{links}\n")
    frame = pd.read_csv(FLICKR8K / "human_judgments.tsv", sep="\t")
    match = (frame.expert_mean_1to4 >= 3) | (frame.crowd_frac_yes >= 0.66)
    verdicts = pd.DataFrame({"image_id": frame.image_row, "text_id": frame.caption_row, "match": match.astype(int)})
    verdicts.to_csv(tmp_path / "judged.csv", index=False)
    from miner.folder import open_folder

    opened = open_folder(folder)
    gallery = {"i2t": opened.texts, "t2i": opened.images}
    anchors = {"i2t": opened.images, "t2i": opened.texts}
    for direction in ("i2t", "t2i"):
        draft = Draft(LocalStore(tmp_path / "c"), direction, CANDIDATES, {})
        blocks = mine(
            anchors[direction],
            index.build("flat", gallery[direction]),
            gallery[direction],
            opened.pairs,
            direction,
            200,
        )
        for _ in write_candidates(draft, blocks, opened.pairs, direction, 200, {"metric": "ip"}):
            pass
    said = told(folder, "--candidates", tmp_path / "c", "--judgements", tmp_path / "judged.csv")
    blind = told(folder, "--candidates", tmp_path / "c")
    for direction in ("i2t", "t2i"):
        none = said[direction]["ladder"][0]["false_negatives"]
        assert 0.05 < none["low"] < none["share"] < none["high"] < 0.3
        assert said[direction]["proposal"] is not None
        # What the assumption says of false negatives is not far from what people say.
        taken = blind[direction]["proposal"]
        rung = next(each for each in said[direction]["ladder"] if each["rule"] == taken)
        assert abs(rung["false_negatives_dropped"] - rung["positives_dropped"]) < 0.25
        assert rung["false_negatives"]["share"] < none["share"]
