"""Rules in the loop: the tables of a round are what `miner filter` makes of the candidates of the same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.pairs import Direction
from miner.cli import main as miner_main
from pipelines.cli import main
from tests.pipelines.builders import raw_settings, write_toml, write_vectors

RULES = ["relative-margin:margin=0.2", "hub-cap:most=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("data"))


def run(base: Path, folder: Path, code: int = 0, **mine: object) -> tuple[Path, str]:
    raw = raw_settings(folder, mine=mine, run={"rounds": 1})
    toml = write_toml(base / "run.toml", raw)
    done = CliRunner().invoke(main, ["run", str(toml), "--run-dir", str(base / "run")])
    assert done.exit_code == code, done.output
    return base / "run", done.output


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_the_tables_are_what_the_filter_makes(folder: Path, tmp_path: Path, direction: Direction) -> None:
    root, _ = run(tmp_path, folder, rules=RULES, num_candidates=12)
    table = only(root, f"rounds/001/mine-{direction}/*")
    assert not (table / "candidates").exists()
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    for side in ("image", "text"):
        (vectors / side).symlink_to(only(root, f"rounds/001/encode-{side}/*"))
    pairs = pd.read_parquet(only(root, "**/pairs.parquet"))
    pairs.to_csv(vectors / "pairs.csv", index=False)
    said = [part for rule in RULES for part in ("--rule", rule)]
    by_hand = ["mine", vectors, "--k", 7, "--num-candidates", 12, *said, "--direction", direction, "--out"]
    done = CliRunner().invoke(miner_main, [str(part) for part in [*by_hand, tmp_path / "hand"]])
    assert done.exit_code == 0, done.output
    for name in ("negatives.parquet", "shortfalls.parquet", "dropped.parquet"):
        mined, expected = (pd.read_parquet(place / name) for place in (table, tmp_path / "hand" / direction))
        assert len(expected) > (0 if name == "shortfalls.parquet" else 50) - 1
        pd.testing.assert_frame_equal(mined, expected)


def test_other_rules_are_another_table(folder: Path, tmp_path: Path) -> None:
    plain, _ = run(tmp_path, folder)
    first = only(plain, "rounds/001/mine-i2t/*").name
    run(tmp_path, folder, rules=["default"])
    assert {first} < {path.name for path in plain.glob("rounds/001/mine-i2t/*")}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["agreement"], "leave it to `miner filter`"),
        (["near-image"], "needs pictures"),
        (["relativ-margin"], "Did you mean 'relative-margin'?\n"),
        (["same-text", "same-text"], "given twice"),
        (
            ["max-score:most=1"],
            "most=1']: rule max-score: 'most' is not a setting; known: score.\n",
        ),
        (["block-list:file=pairs.csv"], "would not notice when it changes"),
        (["verdicts:file=verdicts.json"], "set mine.verdicts"),
    ],
)
def test_rules_that_a_run_cannot_follow(folder: Path, tmp_path: Path, rules: list[str], said: str) -> None:
    _, shown = run(tmp_path, folder, code=3, rules=rules)
    assert said in shown


def test_rules_that_leave_nothing_leave_figures_that_every_json_reader_takes(folder: Path, tmp_path: Path) -> None:
    root, shown = run(tmp_path, folder, rules=["max-score:score=-5"])
    assert "nan" not in shown
    assert "warning" not in shown

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    status = CliRunner().invoke(main, ["status", str(root), "--json"])
    found = json.loads(status.output, parse_constant=refuse)
    assert [round["hardness"] for round in found["rounds"]] == [{}, {}]
