"""`miner calibrate` of a side with itself: positives are items that share a partner, and not every anchor has one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from miner import calibration
from miner.artifacts.pairs import Pairs, Within
from tests.miner.test_calibrate import Given, run, slow, told
from tests.miner.test_mine_rules import run as mined

WIDTH, K = 14, 5
WITHIN = pytest.mark.parametrize("direction", ["i2i", "t2t"])


def truth_of(given, direction: str, width: int) -> tuple[dict[int, Any], dict[int, list[float]]]:
    """By anchor row its candidates, their scores and its lowest positive; its positives' scores. Pair by pair."""
    vectors = (given.images if direction == "i2i" else given.texts).astype(np.float64)
    ids = given.pairs.image_ids if direction == "i2i" else given.pairs.text_ids
    partners: dict[int, set[int]] = {row: set() for row in range(len(vectors))}
    for image, text in zip(given.pairs.image_rows.tolist(), given.pairs.text_rows.tolist(), strict=True):
        row, partner = (image, text) if direction == "i2i" else (text, image)
        partners[row].add(partner)
    truth: dict[int, Any] = {}
    positives: dict[int, list[float]] = {}
    for anchor in partners:
        found, own = [], []
        for other in partners:
            score = float(np.float32(math.fsum((vectors[anchor] * vectors[other]).tolist())))
            if other != anchor and partners[anchor] & partners[other]:
                own.append(score)
            elif other != anchor:
                found.append((-score, int(ids[other]) if ids[other].isdigit() else ids[other], other))
        first = sorted(found)[:width]
        lowest = min(own) if own else math.nan
        truth[anchor], positives[anchor] = ([row for *_, row in first], [-score for score, *_ in first], lowest), own
    return truth, positives


def shared_more(made):
    """The same vectors: the first half of the images with one to four texts, many of them shared; the last with one."""
    rng = np.random.default_rng(5)
    half, texts = len(made.images) // 2, len(made.texts)
    own = np.arange(half, 2 * half)
    shared = rng.integers(0, half, texts - half)
    images = np.concatenate([own, np.arange(half), shared, rng.integers(0, half, half)])
    rows = np.concatenate(
        [np.arange(half), half + np.arange(half), np.arange(half, texts), rng.integers(half, texts, half)]
    )
    return type(made)(Pairs(made.pairs.image_ids, made.pairs.text_ids, images, rows), made.images, made.texts)


@pytest.fixture
def given(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_LEAST_HIDDEN", 1)

    def make(direction: Within, **how: Any) -> Given:
        made = shared_more(problem(**how))
        folder = made.write(tmp_path / "vectors")
        out = tmp_path / "mined"
        mined("mine", folder, "--k", K, "--num-candidates", WIDTH, "--direction", direction, "--out", out)
        truth, positives = truth_of(made, direction, WIDTH)
        return Given(folder, out / "candidates", made.pairs, direction, truth, positives)

    return make


@WITHIN
@pytest.mark.parametrize("grid", [False, True])
def test_every_rung_equals_a_slow_loop(given, direction, grid):
    made = given(direction, grid=grid)
    counts = {len(own) for own in made.positives.values()}
    assert 0 in counts
    assert len(counts) > 2
    said = told(made.folder, "--candidates", made.candidates, "--k", K)[direction]
    assert (said["k"], said["num_candidates"], said["anchors"]) == (K, WIDTH, len(made.truth))
    assert len(said["ladder"]) >= 10
    for rung in said["ladder"]:
        for name, value in slow(made, rung["rule"], K).items():
            assert rung[name] == pytest.approx(value, abs=2e-6), (rung["rule"], name)
    none = sum(not own for own in made.positives.values())
    assert any(note.startswith(f"{none} of {len(made.truth)} ") for note in said["notes"])
    samples = {"all positives": [score for own in made.positives.values() for score in own]}
    samples["lowest positive"] = [min(own) for own in made.positives.values() if own]
    for name, scores in samples.items():
        expected = {f"{q:g}": np.quantile(scores, q) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
        assert said["scores"][name] == pytest.approx(expected, abs=2e-6)
    shown = run(made.folder, "--candidates", made.candidates, "--k", K)
    assert "proposal: " in shown.output
    assert "a margin drops none of their candidates" in shown.output


@WITHIN
def test_a_table_gives_the_same(given, direction, tmp_path):
    made = given(direction)
    expected = told(made.folder, "--candidates", made.candidates, "--k", K)[direction]
    mined("mine", made.folder, "--k", WIDTH, "--direction", direction, "--out", tmp_path / "table")
    bare = tmp_path / "bare.parquet"
    pd.read_parquet(tmp_path / "table" / direction / "negatives.parquet").to_parquet(bare)
    for path, more in ((tmp_path / "table", []), (bare, ["--direction", direction])):
        said = told(made.folder, "--candidates", path, "--k", K, *more)[direction]
        assert {**said, "candidates_from": "", "notes": []} == {**expected, "candidates_from": "", "notes": []}


@WITHIN
def test_judgements_of_a_side_with_itself(given, direction):
    made = given(direction)
    ids = made.pairs.image_ids if direction == "i2i" else made.pairs.text_ids
    verdicts = [(a, n, float((a + at) % 3 == 0)) for a, (found, *_) in made.truth.items() for at, n in enumerate(found)]
    itself = [(a, a, 1.0) for a in list(made.truth)[:4]]
    judged = pd.DataFrame(
        [{"anchor_id": ids[a], "negative_id": ids[n], "match": match} for a, n, match in verdicts + itself]
    )
    path = made.folder.parent / "judged.csv"
    judged.to_csv(path, index=False)
    said = told(made.folder, "--candidates", made.candidates, "--k", K, "--judgements", path)[direction]
    hardest = [match for a, n, match in verdicts if n in made.truth[a][0][:K]]
    assert said["ladder"][0]["false_negatives"]["share"] == pytest.approx(np.mean(hardest), abs=2e-6)
    assert said["judged"]["among_candidates"] == len(verdicts)
    assert "4 judged pairs are positives already and were left out" in said["judged"]["notes"]
    judged.set_axis(["image_id", "text_id", "match"], axis=1).to_csv(path, index=False)
    refused = run(made.folder, "--candidates", made.candidates, "--judgements", path)
    assert refused.exit_code == 3
    assert "give the columns anchor_id and negative_id" in refused.output


def test_directions_are_those_that_were_searched(given, tmp_path):
    made = given("t2t")
    mined("mine", made.folder, "--k", K, "--num-candidates", WIDTH, "--out", tmp_path / "mined")
    assert list(told(made.folder, "--candidates", made.candidates)) == ["i2t", "t2i", "t2t"]
    assert list(told(made.folder, "--candidates", made.candidates, "--direction", "both")) == ["i2t", "t2i"]
    assert list(told(made.folder, "--candidates", made.candidates, "--direction", "t2t")) == ["t2t"]


@WITHIN
def test_where_nothing_is_shared_there_is_nothing_to_calibrate(problem, direction, tmp_path):
    made = problem()
    rows = np.arange(len(made.images))
    pairs = Pairs(made.pairs.image_ids, made.pairs.image_ids, rows, rows)
    folder: Path = type(made)(pairs, made.images, made.texts[: len(rows)]).write(tmp_path / "vectors")
    mined("mine", folder, "--k", K, "--direction", direction, "--out", tmp_path / "mined")
    refused = run(folder, "--candidates", tmp_path / "mined")
    assert refused.exit_code == 3
    item, partner = ("image", "text") if direction == "i2i" else ("text", "image")
    assert f"no {item} shares a {partner} with another, so no anchor of {direction} has a positive" in refused.output
    assert "calibrate i2t or t2i" in refused.output
    assert refused.output.strip().splitlines()[-1].startswith("error: ")
