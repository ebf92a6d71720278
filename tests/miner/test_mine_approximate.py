"""`miner mine --index` with an approximate index: recall chosen, measured and stored; said where it does not apply."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.negatives import NegativeTable
from miner.cli import main


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def given(problem, tmp_path):
    made = problem(images=300, dim=8)
    return made, made.write(tmp_path / "vectors")


def provenance(table: Path) -> dict[str, object]:
    return json.loads((table / "manifest.json").read_text())["meta"]["provenance"]


def test_recall_is_chosen_measured_and_stored(given, oracle, tmp_path):
    made, folder = given
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    said = run("mine", folder, "--k", 5, "--index", tmp_path / "index", "--recall", 0.9, "--out", tmp_path / "a")
    assert "IVF16,Flat nprobe=" in said
    for direction in ("i2t", "t2i"):
        about = provenance(tmp_path / "a" / direction)
        assert about["index"] == "factory"
        assert about["factory"] == "IVF16,Flat"
        claimed = about["recall"]["recall"]["5"]
        table = NegativeTable.open(tmp_path / "a" / direction, made.pairs)
        expected = oracle(made, direction, 5)
        shares = [np.isin(rows, table.negatives[row]).mean() for row, (rows, _, _) in expected.items()]
        assert claimed == pytest.approx(np.mean(shares), abs=0.06)
        assert np.mean(shares) > 0.85
    again = run("mine", folder, "--k", 5, "--index", tmp_path / "index", "--recall", 0.9, "--out", tmp_path / "a")
    assert again.count("already done") == 2
    assert again.count("approximate: recall@5 ") == 2
    other = run("mine", folder, "--k", 5, "--index", tmp_path / "index", "--nprobe", 2, "--out", tmp_path / "a", code=3)
    assert "nothing is overwritten" in other
    run("mine", folder, "--k", 5, "--index", tmp_path / "index", "--nprobe", 16, "--out", tmp_path / "b")
    run("mine", folder, "--k", 5, "--out", tmp_path / "exact")
    for direction in ("i2t", "t2i"):
        tables = [NegativeTable.open(tmp_path / name / direction, made.pairs) for name in ("b", "exact")]
        assert np.array_equal(tables[0].negatives, tables[1].negatives)
        assert provenance(tmp_path / "b" / direction)["recall"]["recall"]["5"] == 1


@pytest.mark.parametrize("rules", [["max-score:score=6"], ["max-score:score=6", "hub-cap:most=9"]])
def test_with_rules_it_searches_deeper_through_the_index(given, tmp_path, rules):
    """With all lists looked into that is what exact search finds."""
    _, folder = given
    said = [part for rule in rules for part in ("--rule", rule)]
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    index = ["--index", tmp_path / "index", "--nprobe"]
    told = run("mine", folder, "--k", 5, *index, 4, *said, "--out", tmp_path / "a")
    assert "dropped by max-score" in told
    assert "deep\n" in told
    run("check", tmp_path / "a" / "i2t")
    about = provenance(tmp_path / "a" / "i2t")
    assert about["index"] == "factory"
    assert about["search"]["nprobe"] == 4
    assert 0 < about["recall"]["recall"]["10"] <= 1  # of the candidates
    again = run("mine", folder, "--k", 5, *index, 4, *said, "--out", tmp_path / "a")
    assert (again.count("already searched"), again.count("already done")) == (2, 2)
    run("mine", folder, "--k", 5, *index, 16, *said, "--out", tmp_path / "all")
    run("mine", folder, "--k", 5, *said, "--out", tmp_path / "exact")
    for direction in ("i2t", "t2i"):
        for name in ("negatives.parquet", "shortfalls.parquet", "dropped.parquet"):
            found, expected = (pd.read_parquet(tmp_path / place / direction / name) for place in ("all", "exact"))
            pd.testing.assert_frame_equal(found, expected)
        deepened = [json.loads((tmp_path / p / direction / "manifest.json").read_text()) for p in ("all", "exact")]
        assert deepened[0]["meta"]["deepened"] == deepened[1]["meta"]["deepened"] != {}
    # Without the index at hand nothing is searched deeper, and that is said.
    run("filter", folder, "--candidates", tmp_path / "a" / "candidates", "--k", 5, *said, "--out", tmp_path / "b")
    reasons = pd.read_parquet(tmp_path / "b" / "i2t" / "shortfalls.parquet")["reason"]
    assert len(reasons) > 0
    assert reasons.str.contains("nothing to search deeper in").all()
    # With it, choosing again is what the search and the rules in one command gave.
    again = ["filter", folder, "--candidates", tmp_path / "a" / "candidates", "--k", 5, *said]
    run(*again, "--index", tmp_path / "index", "--out", tmp_path / "c")
    for direction in ("i2t", "t2i"):
        for name in ("negatives.parquet", "shortfalls.parquet", "dropped.parquet"):
            a, c = ((tmp_path / place / direction / name).read_bytes() for place in ("a", "c"))
            assert a == c, (direction, name)


def test_only_the_index_that_found_the_candidates_searches_deeper(given, tmp_path):
    _, folder = given
    rule = ["--rule", "max-score:score=6"]
    for name, seed in (("index", 0), ("other", 1)):
        run("build-index", folder, "--factory", "IVF16,Flat", "--seed", seed, "--out", tmp_path / name)
    run("mine", folder, "--k", 5, *rule, "--out", tmp_path / "exact")
    run("mine", folder, "--k", 5, *rule, "--index", tmp_path / "index", "--nprobe", 4, "--out", tmp_path / "a")

    def refused(candidates, *options):
        said = ["filter", folder, "--candidates", tmp_path / candidates / "candidates", "--k", 5, *rule, *options]
        shown = run(*said, "--out", tmp_path / "no", code=3)
        assert not list((tmp_path / "no").glob("*/manifest.json"))
        return " ".join(shown.split())

    assert "another index found the candidates of i2t" in refused("a", "--index", tmp_path / "other")
    assert f"{tmp_path}/none" in refused("a", "--index", tmp_path / "none")
    assert "are of an exact search; leave it out" in refused("exact", "--index", tmp_path / "index")
    assert "--index is to search deeper" in refused("a", "--index", tmp_path / "index", "--no-deepen")


def test_the_sample_is_asked_for_and_stored(given, tmp_path):
    _, folder = given
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    index = ["--direction", "i2t", "--index", tmp_path / "index"]
    told = run("mine", folder, "--k", 5, *index, "--nprobe", 1, "--recall-sample", 40, "--out", tmp_path / "a")
    few = provenance(tmp_path / "a" / "i2t")["recall"]
    assert few["anchors"] == 40
    assert f"(95% interval {few['interval'][0]:.4f} to {few['interval'][1]:.4f}, 40 anchors)" in told
    other = run("mine", folder, "--k", 5, *index, "--nprobe", 1, "--recall-sample", 41, "--out", tmp_path / "a", code=3)
    assert "nothing is overwritten" in other
    run("mine", folder, "--k", 5, *index, "--nprobe", 1, "--out", tmp_path / "b")
    many = provenance(tmp_path / "b" / "i2t")["recall"]
    assert many["anchors"] == 150  # half of the images, as there are fewer than 2,000
    assert np.ptp(few["interval"]) > np.ptp(many["interval"])


def test_who_was_searched_again_is_counted(given, tmp_path):
    made, folder = given
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    index = ["--direction", "i2t", "--index", tmp_path / "index"]
    told = run("mine", folder, "--k", 300, *index, "--nprobe", 1, "--out", tmp_path / "a")
    again, short = re.search(r"i2t: (\d+) anchors were searched again, .*; (\d+) have fewer than 300", told).groups()
    table = NegativeTable.open(tmp_path / "a" / "i2t", made.pairs)
    assert int(short) == (table.num_negatives < 300).sum() > 0
    assert int(again) == 300  # no list holds 300 of 945 texts
    told = run("mine", folder, "--k", 5, *index, "--nprobe", 16, "--out", tmp_path / "b")
    assert "i2t: 0 anchors were searched again, deeper and harder; 0 have fewer than 5 all the same" in told


def test_where_it_does_not_apply(given, tmp_path):
    _, folder = given
    run("build-index", folder, "--out", tmp_path / "flat")
    run("build-index", folder, "--factory", "IVF16,Flat", "--side", "text", "--out", tmp_path / "index")
    out = ["--out", tmp_path / "a"]
    exact = "for approximate indexes, and this search is exact"
    assert exact in run("mine", folder, "--recall", 0.9, *out, code=3)
    assert "--recall-sample is " + exact in run("mine", folder, "--recall-sample", 9, *out, code=3)
    assert exact in run("mine", folder, "--index", tmp_path / "flat", "--nprobe", 3, *out, code=3)
    index = ["--direction", "i2t", "--index", tmp_path / "index"]
    assert "give one of them" in run("mine", folder, *index, "--recall", 0.9, "--nprobe", 3, *out, code=3)
    assert "ef" in run("mine", folder, *index, "--ef-search", 30, *out, code=3)
    assert "image" in run("mine", folder, "--direction", "t2i", "--index", tmp_path / "index", *out, code=3)
    assert not (tmp_path / "a" / "i2t" / "manifest.json").exists()
