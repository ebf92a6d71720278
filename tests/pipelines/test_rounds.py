"""The finished rounds of a run folder, and `trainer analyze --run` on them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import MANIFEST, open_artifact
from miner.artifacts.negatives import NEGATIVES
from miner.artifacts.store import LocalStore
from pipelines import cli, loop
from pipelines.rounds import rounds
from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from trainer import losses, registry
from trainer.analyze import COLUMNS, Threshold, analyze
from trainer.checkpoint import CHECKPOINT
from trainer.cli import main
from trainer.data import Dataset, configure, load

LOSS = "aoq:form=OffQuin,h_t=5,h_v=5"


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load(configure("vectors", {"folder": folder}), "train")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A run of two mined rounds."""
    base = tmp_path_factory.mktemp("rounds")
    run_file = write_toml(base / "run.toml", raw_settings(folder, run={"first_epochs": 1, "epochs": 1}))
    result = CliRunner().invoke(cli.main, ["run", str(run_file), "--run-dir", str(base / "run")])
    assert result.exit_code == 0, result.output
    return base / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def trainer(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["analyze", "--batch-size", "32", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_round_comes_with_the_tables_it_was_trained_on(finished: Path, dataset: Dataset) -> None:
    found = rounds(finished, dataset)
    assert [one.label for one in found] == ["round 0", "round 1", "round 2"]
    assert [one.checkpoint.epoch for one in found] == [1, 2, 3]
    assert found[0].tables is None
    for number, one in enumerate(found[1:], start=1):
        assert one.tables is not None
        assert set(one.tables) == {"i2t", "t2i"}
        for direction, table in one.tables.items():
            (manifest,) = (finished / "rounds" / f"{number:03d}" / f"mine-{direction}").glob(f"*/{MANIFEST}")
            mined = open_artifact(manifest.parent, NEGATIVES).manifest
            assert (table.direction, table.fingerprint) == (direction, mined.fingerprint)
            (fitted,) = (finished / "rounds" / f"{number:03d}" / "fit").glob(f"*/{MANIFEST}")
            assert open_artifact(fitted.parent, CHECKPOINT).manifest.inputs["parents"][direction] == mined.fingerprint


def test_a_run_is_counted_round_by_round(finished: Path, folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    before = contents(finished)
    data = ["--data", folder, "--run", finished, "--threshold", 0, "--threshold", 0.5]
    shown = trainer(*data, "--loss", LOSS, "--loss", "ntxent", "--out", tmp_path / "c")
    assert f"round 0: no tables, so {LOSS} is not counted there" in shown
    assert contents(finished) == before
    with open(tmp_path / "c" / "counts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    labels = list(dict.fromkeys(row["label"] for row in rows))
    assert labels == [
        "round 0, ntxent", f"round 1, {LOSS}", "round 1, ntxent", f"round 2, {LOSS}", "round 2, ntxent",
    ]  # fmt: skip
    # The same as by hand, from the round's checkpoint and tables.
    expected = []
    for one in rounds(finished, dataset)[1:]:
        expected += analyze(
            dataset, one.checkpoint, losses.configure(*registry.spoken(LOSS)), tables=one.tables, batch_size=32,
            thresholds=[Threshold(0.0), Threshold(0.5)],
        )  # fmt: skip
    mine = [row for row in rows if row["label"].endswith(LOSS)]
    assert len(mine) == len(expected) == 2 * 2 * 6  # online and offline of both directions, c_1 and c_2
    for row, figures in zip(mine, expected, strict=True):
        assert (row["direction"], row["negatives"]) == (figures["direction"], figures["negatives"])
        for name in ("threshold", "queries", "batches", "count", "count_std", "none", "share", "per_query", "weight"):
            assert float(row[name]) == pytest.approx(figures[name])
    assert sum(float(row["count"]) for row in mine if row["negatives"] == "offline") > 0


def test_one_objective_of_a_run_is_labelled_by_round(finished: Path, folder: Path) -> None:
    shown = trainer("--data", folder, "--run", finished, "--batches", 1)
    assert [line for line in shown.splitlines() if line.startswith("counting")] == [
        f"counting round {number}" for number in range(3)
    ]


def test_an_unfinished_run_has_the_rounds_it_has(copy: Path, dataset: Dataset, folder: Path) -> None:
    shutil.rmtree(copy / "rounds" / "002" / "fit")
    assert [one.label for one in rounds(copy, dataset)] == ["round 0", "round 1"]
    shutil.rmtree(copy / "rounds" / "001" / "fit")
    assert "counting triplet" in trainer("--data", folder, "--run", copy, "--batches", 1)
    shown = trainer("--data", folder, "--run", copy, "--loss", LOSS, code=3)
    assert "error: the loss aoq uses offline negatives, but no tables were given" in shown
    shutil.rmtree(copy / "rounds")
    with pytest.raises(BadInput, match="no round of this run is finished yet; let `pipelines run` come further"):
        rounds(copy, dataset)
    assert "no round of this run is finished yet" in trainer("--data", folder, "--run", copy, code=3)


def test_a_damaged_checkpoint_is_not_counted(copy: Path, folder: Path) -> None:
    (weights,) = (copy / "rounds" / "001" / "fit").glob("*/weights.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    weights.write_bytes(damaged)
    assert "error: " in trainer("--data", folder, "--run", copy, code=4)


def test_a_run_of_other_data_is_refused(finished: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_vectors(tmp_path / "other", seed=1)
    before = contents(finished)
    for arguments in (["--data", other], ["--data", folder, "--split", "dev"]):
        shown = trainer(*arguments, "--run", finished, code=3)
        assert f"{finished}: this run is of other data than" in shown
        assert "give the data, the fold and the split train that it was started on." in shown
    assert contents(finished) == before


def test_a_run_of_another_fold_is_refused(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path, data={"format": "emoji", "fold": 1}, model={"name": "cnn_gru"})
    del raw["data"]["folder"]
    raw["model"] = {"name": "cnn_gru", "dim": 8, "channels": [8], "word_dim": 4, "hidden": 4}
    settings = Settings.parse(raw, "test")
    loop.prepare(settings, loop.describe(settings), LocalStore(tmp_path / "run"))
    shown = trainer("--data", "emoji", "--run", tmp_path / "run", code=3)
    assert "this run is of other data than emoji train; give the data, the fold" in shown
    # Of the right fold, there is nothing to count yet.
    assert "no round of this run is finished yet" in trainer(
        "--data", "emoji", "--fold", 1, "--run", tmp_path / "run", code=3
    )


def test_a_folder_that_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        shown = trainer("--data", folder, "--run", place, code=3)
        assert f"{place}: no run here; `pipelines run RUN_FILE --run-dir" in shown
    assert not list(tmp_path.iterdir())
