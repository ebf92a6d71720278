"""`run.restart`: every mined round trains a new model. And a pretrained model whose folder lies beside the run file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction
from pipelines.cli import main
from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings, write_toml
from trainer.checkpoint import Checkpoint
from trainer.data import load
from trainer.training import fit


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def test_a_restarted_round_is_a_training_from_scratch_on_what_the_last_model_mined(
    tmp_path: Path, folder: Path
) -> None:
    raw = raw_settings(folder, run={"rounds": 2, "first_epochs": 1, "epochs": 3, "restart": True})
    raw["fit"] |= {"online_epochs": 1, "lr_schedule": "cosine"}
    file = write_toml(tmp_path / "run.toml", raw)
    result = CliRunner().invoke(main, ["run", str(file), "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    settings = Settings.load(file)
    train = load(settings.data, "train")
    steps = len(train.pairs.image_rows) // 32
    for number in (1, 2):
        root = tmp_path / "run" / "rounds" / f"{number:03d}"
        tables = {d: NegativeTable.open(only(root, f"mine-{d}/*"), train.pairs) for d in get_args(Direction)}
        wanted = fit(train, settings.model, settings.loss, settings.fit_config(number), tables=tables)
        found = Checkpoint.load(only(root, "fit/*"))
        assert found.fingerprint == wanted.fingerprint
        assert (found.epoch, found.updates) == (3, 3 * steps)
    tables = [only(tmp_path / "run", f"rounds/{n:03d}/mine-i2t/*") / "negatives.parquet" for n in (1, 2)]
    assert tables[0].read_bytes() != tables[1].read_bytes()


def test_a_pretrained_folder_is_meant_from_the_run_file(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from tests.trainer.pretrained_models import clip

    clip(tmp_path / "there" / "clip")
    raw = {**raw_settings(folder), "model": {"name": "clip", "path": "clip"}}
    file = write_toml(tmp_path / "there" / "run.toml", raw)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = Settings.load(file)
    assert settings.model.path == str((tmp_path / "there" / "clip").resolve())
    assert settings.model.dim == 12
    assert Settings.parse(settings.dump(), "again") == settings
