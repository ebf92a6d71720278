"""`miner mine --index` with an approximate index: recall chosen, measured and stored; said where it does not apply."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


def test_with_rules_nothing_is_searched_deeper(given, tmp_path):
    _, folder = given
    run("build-index", folder, "--factory", "IVF16,Flat", "--out", tmp_path / "index")
    index = ["--index", tmp_path / "index", "--nprobe", 4]
    said = run("mine", folder, "--k", 5, *index, "--rule", "max-score:score=6", "--out", tmp_path / "a")
    assert "dropped by max_score" in said
    assert "deep\n" not in said
    run("check", tmp_path / "a" / "i2t")
    about = provenance(tmp_path / "a" / "i2t")
    assert about["index"] == "factory"
    assert about["search"]["nprobe"] == 4
    assert 0 < about["recall"]["recall"]["10"] <= 1  # of the candidates


def test_where_it_does_not_apply(given, tmp_path):
    _, folder = given
    run("build-index", folder, "--out", tmp_path / "flat")
    run("build-index", folder, "--factory", "IVF16,Flat", "--side", "text", "--out", tmp_path / "index")
    out = ["--out", tmp_path / "a"]
    exact = "for approximate indexes, and this search is exact"
    assert exact in run("mine", folder, "--recall", 0.9, *out, code=3)
    assert exact in run("mine", folder, "--index", tmp_path / "flat", "--nprobe", 3, *out, code=3)
    index = ["--direction", "i2t", "--index", tmp_path / "index"]
    assert "give one of them" in run("mine", folder, *index, "--recall", 0.9, "--nprobe", 3, *out, code=3)
    assert "ef" in run("mine", folder, *index, "--ef-search", 30, *out, code=3)
    assert "image" in run("mine", folder, "--direction", "t2i", "--index", tmp_path / "index", *out, code=3)
    assert not (tmp_path / "a" / "i2t" / "manifest.json").exists()
