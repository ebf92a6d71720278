"""Verdicts in the loop: the next `mine` honours them, and nothing else is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.manifest import digest_file
from pipelines.cli import main
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import hashes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds without verdicts."""
    base = tmp_path_factory.mktemp("verdicts")
    (base / "data").mkdir()
    run(base, write_vectors(base / "data"))
    return base


def run(base: Path, folder: Path, code: int = 0, **mine: object) -> str:
    toml = write_toml(base / "run.toml", raw_settings(folder, mine=mine))
    done = CliRunner().invoke(main, ["run", str(toml), "--run-dir", str(base / "run")])
    assert done.exit_code == code, done.output
    return done.output


def keys(base: Path, pattern: str) -> set[str]:
    return {path.parent.name for path in (base / "run").glob(f"rounds/{pattern}/*/manifest.json")}


def test_from_the_round_that_is_named_on_the_judged_are_dropped(base: Path) -> None:
    folder, root = base / "data", base / "run"
    first = {label: keys(base, label) for label in ("001/mine-i2t", "001/fit", "002/mine-i2t")}
    (table,) = root.glob("rounds/002/mine-i2t/*/negatives.parquet")
    hardest = pd.read_parquet(table).query("rank == 0")
    false, easy = hardest.iloc[:20], hardest.iloc[20:30]
    rows = [("false_negative", row) for row in false.itertuples()] + [("too_easy", row) for row in easy.itertuples()]
    lines = [
        {"direction": "i2t", "anchor_id": row.anchor_id, "negative_id": row.negative_id, "verdict": verdict}
        for verdict, row in rows
    ]
    (base / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(base, folder, verdicts="judged.jsonl", verdicts_from=2)
    assert keys(base, "001/mine-i2t") == first["001/mine-i2t"]
    assert keys(base, "001/fit") == first["001/fit"]
    (key,) = keys(base, "002/mine-i2t") - first["002/mine-i2t"]
    mined = root / "rounds" / "002" / "mine-i2t" / key
    negatives = pd.read_parquet(mined / "negatives.parquet")
    said = {(line["anchor_id"], line["negative_id"]): line["verdict"] for line in lines}
    assert not said.keys() & set(zip(negatives.anchor_id, negatives.negative_id, strict=True))
    dropped = pd.read_parquet(mined / "dropped.parquet")
    told = {(a, n): rule for a, n, rule in zip(dropped.anchor_id, dropped.negative_id, dropped.rule, strict=True)}
    assert told == {pair: f"verdicts:{verdict}" for pair, verdict in said.items()}

    # The same words elsewhere are the same table; the run has its own copy.
    (base / "judged.jsonl").rename(base / "moved.jsonl")
    assert "0 to run" not in run(base, folder, verdicts="moved.jsonl", verdicts_from=2)  # the page names the settings
    assert keys(base, "002/mine-i2t") == {key, *first["002/mine-i2t"]}
    (base / "moved.jsonl").write_text((base / "moved.jsonl").read_text().replace("too_easy", "fine"))
    assert CliRunner().invoke(main, ["status", str(root)]).output.count("stale") == 0
    before = keys(base, "002/mine-i2t")
    run(base, folder, verdicts="moved.jsonl", verdicts_from=2)
    assert len(keys(base, "002/mine-i2t")) == 3
    assert "note" not in CliRunner().invoke(main, ["verify", str(root)]).output  # the copies are the run's own

    # A damaged copy is told, and never mined by: the same command writes it anew, and mines the same.
    (kept,) = (root / "verdicts").glob(f"{digest_file(base / 'moved.jsonl')}.*")
    (latest,) = keys(base, "002/mine-i2t") - before
    table = root / "rounds" / "002" / "mine-i2t" / latest
    wanted = hashes(table)
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[1:]))
    told = CliRunner().invoke(main, ["verify", str(root)])
    assert (told.exit_code, told.output.count("not the verdicts that were kept")) == (4, 1)
    shutil.rmtree(table)
    run(base, folder, verdicts="moved.jsonl", verdicts_from=2)
    assert hashes(table) == wanted
    assert CliRunner().invoke(main, ["verify", str(root)]).exit_code == 0


def test_a_file_that_is_none_is_refused_before_anything_runs(base: Path) -> None:
    assert "no such file" in run(base, base / "data", code=3, verdicts="nowhere.jsonl")
    (base / "odd.jsonl").write_text('{"direction": "i2t", "anchor_id": "a", "negative_id": "b", "verdict": "bad"}\n')
    assert "has verdict 'bad'" in run(base, base / "data", code=3, verdicts="odd.jsonl")
