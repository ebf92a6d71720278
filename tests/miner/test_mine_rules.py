"""`miner mine --rule`: the negatives of `miner filter` on the candidates it keeps; done, resumed, and refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from miner.cli import main


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def rows(folder: Path) -> list[dict[str, object]]:
    return pq.read_table(folder / "negatives.parquet").to_pylist()


@pytest.mark.parametrize("rules", [["relative-margin:margin=0.3"], ["agreement:within=9", "hub-cap:most=6"], []])
@pytest.mark.parametrize("direction", ["both", "t2i", "t2t"])
def test_mining_by_rules_is_searching_and_filtering(problem, tmp_path, rules, direction):
    folder = problem(images=60).write(tmp_path / "vectors")
    said = [part for rule in rules for part in ("--rule", rule)]
    chosen = ["mine", folder, "--k", 4, "--direction", direction, "--num-candidates", 10, *said, "--out"]
    first = run(*chosen, tmp_path / "a")
    assert "choose again by other rules: miner filter" in first
    again = run(*chosen, tmp_path / "a")
    assert "already searched" in again
    assert "already done" in again
    only = [] if direction == "both" else ["--direction", direction]
    run(
        "filter", folder, "--candidates", tmp_path / "a" / "candidates", "--k", 4, *said, *only, "--out", tmp_path / "b"
    )
    directions = ["i2t", "t2i"] if direction == "both" else [direction]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == directions
    for each in directions:
        for name in ("negatives.parquet", "shortfalls.parquet", "dropped.parquet"):
            assert (tmp_path / "a" / each / name).read_bytes() == (tmp_path / "b" / each / name).read_bytes()
    if not rules:
        run("mine", folder, "--k", 4, "--direction", direction, "--out", tmp_path / "plain")
        for each in directions:
            assert rows(tmp_path / "a" / each) == rows(tmp_path / "plain" / each)
    assert not (tmp_path / "a" / ".search").exists()


def test_the_default_rule_by_itself(problem, tmp_path):
    folder = problem(images=60).write(tmp_path / "vectors")
    said = run("mine", folder, "--k", 4, "--rule", "default", "--out", tmp_path / "a")
    assert "dropped by" in said
    run("check", tmp_path / "a" / "i2t")
    run("diff", tmp_path / "a", tmp_path / "a")
    run("calibrate", folder, "--candidates", tmp_path / "a" / "candidates")


def test_refusals(problem, tmp_path):
    folder = problem().write(tmp_path / "vectors")
    out = ["--out", tmp_path / "a"]
    assert "give a --rule too" in run("mine", folder, "--k", 2, "--max-candidates", 9, *out, code=3)
    assert "fewer than the 7 negatives" in run("mine", folder, "--k", 7, "--num-candidates", 5, *out, code=3)
    assert "Did you mean 'relative-margin'" in run("mine", folder, "--rule", "relativ-margin", *out, code=3)
    assert "--texts" in run("mine", folder, "--k", 2, "--rule", "same-text", *out, code=3)
    assert not (tmp_path / "a" / "i2t").exists()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (["same-text"], "give a table of id and text with --texts"),
        (["same-text", "--texts", "nowhere.csv"], "nowhere.csv"),
        (["block-list:file=nowhere.csv"], "nowhere.csv: no such file"),
        (["range-min:skip=1", "--max-candidates", "3"], "--max-candidates 3, but 10 are searched"),
    ],
)
def test_what_rules_lack_is_said_before_the_search(problem, tmp_path, rule, said):
    folder = problem(images=30).write(tmp_path / "vectors")
    shown = run("mine", folder, "--k", 5, "--rule", *rule, "--out", tmp_path / "a", code=3)
    assert said in shown
    assert "comparing" not in shown
    assert not (tmp_path / "a" / "candidates").exists()


def test_agreement_has_what_it_looks_at_searched(problem, tmp_path):
    """Its default are 50 of the other direction, more than twice k; where there are fewer, all."""
    folder = problem(images=60).write(tmp_path / "vectors")
    run("mine", folder, "--k", 5, "--rule", "agreement", "--out", tmp_path / "a")
    run("mine", folder, "--k", 5, "--num-candidates", 50, "--rule", "agreement:within=50", "--out", tmp_path / "b")
    assert rows(tmp_path / "a" / "t2i") == rows(tmp_path / "b" / "t2i")
    few = problem(images=20).write(tmp_path / "few")
    run("mine", few, "--k", 5, "--direction", "i2i", "--rule", "agreement", "--out", tmp_path / "c")
    run("mine", few, "--k", 5, "--direction", "i2i", "--rule", "agreement:within=20", "--out", tmp_path / "d")
    assert rows(tmp_path / "c" / "i2i") == rows(tmp_path / "d" / "i2i")
    # 20 of the few images are all there are, but not 50 of the texts: said before anything is searched.
    said = run("mine", few, "--k", 5, "--rule", "agreement", "--out", tmp_path / "e", code=3)
    assert "within = 50, but 20 of" in said
    assert "are searched for every anchor of i2t; ask for within=20 at most" in " ".join(said.split())
    assert not (tmp_path / "e").exists()
    run("mine", few, "--k", 5, "--rule", "agreement:within=20", "--out", tmp_path / "e")


def test_a_direction_that_cannot_be_is_said_before_the_other_is_written(problem, tmp_path):
    folder = problem(images=20).write(tmp_path / "vectors")
    run("mine", folder, "--k", 5, "--num-candidates", 20, "--out", tmp_path / "a")
    chosen = ["filter", folder, "--candidates", tmp_path / "a" / "candidates", "--rule", "range-min:skip=1"]
    assert "there are 20 images" in run(*chosen, "--k", 25, "--out", tmp_path / "b", code=3)
    assert not (tmp_path / "b" / "i2t").exists()
