"""A run file is validated whole, and says which key is wrong and which one was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from miner.artifacts.errors import BadInput
from pipelines.settings import DEMO, Settings
from tests.pipelines.builders import raw_settings, write_toml


def test_the_demo_file_is_valid_and_mines() -> None:
    settings = Settings.load(DEMO)
    assert settings.run.rounds >= 3
    assert settings.loss.needs_tables


def test_what_is_dumped_parses_to_the_same(settings: Settings) -> None:
    assert Settings.parse(settings.dump(), "again") == settings


def test_epochs_are_counted_through_the_run(settings: Settings) -> None:
    assert [settings.run.epochs_of(round) for round in range(3)] == [(0, 2), (2, 2), (4, 2)]
    assert settings.fit_config(1).total_epochs == 6


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"modell": {"dim": 3}}, ["[modell]", "[model]"]),
        ({"model": {"dimm": 3}}, ["[model]", "dimm", "'dim'"]),
        ({"fit": {"batchsize": 3}}, ["[fit]", "batchsize", "batch_size"]),
        ({"fit": {"epochs": 3}}, ["fit.epochs", "[run]"]),
        ({"run": {"round": 3}}, ["[run]", "rounds"]),
        ({"mine": {"k": 0}}, ["[mine]", "k", "a whole number from 1 on"]),
        ({"mine": {"k": {"i2t": 7, "t2i": 0}}}, ["[mine]", "k", "{ i2t = 300, t2i = 60 }"]),
        ({"mine": {"k": {"i2t": 7}}}, ["[mine]", "k", "one of each direction"]),
        ({"mine": {"k": True}}, ["[mine]", "k", "a whole number"]),
        (
            {"mine": {"num_candidates": {"i2t": 7, "t2i": "many"}}},
            ["[mine]", "num_candidates", "one of each direction"],
        ),
        ({"loss": {"name": "aok"}}, ["[loss]", "aok", "'aoq'"]),
        ({"data": {"format": "emojis"}}, ["[data]", "'emoji'"]),
        ({"executor": {"kind": "slurm"}}, ["[executor]", "slurm"]),
        ({"executor": {"encode": {"cpu": 2}}}, ["[executor]", "encode.cpu", "'cpus'"]),
        ({"executor": {"encode": 2}}, ["[executor]", "encode = 2"]),
        ({"executor": {"mine": {"gpus": 1.5}}}, ["[executor]", "mine.gpus", "whole number"]),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(
    folder: Path, sections: dict[str, dict[str, object]], words: list[str]
) -> None:
    raw = raw_settings(folder)
    if "data" in sections:
        raw.pop("data")
    if "loss" in sections:
        raw.pop("loss")
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    with pytest.raises(BadInput) as caught:
        Settings.parse(raw, "run.toml")
    for word in ["run.toml", *words]:
        assert word in str(caught.value)


def test_a_file_that_is_not_toml_or_not_there(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadInput, match="no such run file"):
        Settings.load(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(BadInput, match="not valid TOML"):
        Settings.load(tmp_path / "broken.toml")
    assert Settings.load(write_toml(tmp_path / "run.toml", raw_settings(folder))).mine.k == 7
