"""`trainer fit --loss`, and the sections [loss] and [model] of a settings file. What is refused: `test_cli`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miner.artifacts.manifest import open_artifact
from tests.trainer.test_cli import SMALL, mine, run, settings
from trainer import models
from trainer.checkpoint import CHECKPOINT, Checkpoint


@pytest.fixture
def vectors(toys: SimpleNamespace, tmp_path: Path) -> Path:
    folder: Path = toys.write_vectors(tmp_path / "data", 60)
    return folder


def trained_with(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of the loss in a checkpoint's manifest."""
    name, values = open_artifact(folder, CHECKPOINT).manifest.inputs["loss"]
    return name, values


@pytest.mark.parametrize(
    ("loss", "settled"),
    [
        ("ntxent:tau=0.05", {"tau": 0.05, "offline": "none"}),
        ("goal:triplet=nca,pair=lin", {"triplet": "nca", "pair": "lin", "tau": 10.0}),
        ("goal: triplet = cir, tau = 1", {"triplet": "cir", "tau": 1.0}),
        ("smoothap", {"tau": 0.01}),
        ("triplet:max_violation=false,margin=0.3", {"max_violation": False, "margin": 0.3}),
        ("sct", {"weight": 1.0}),
        ("selhn:epsilon=0.1", {"epsilon": 0.1}),
    ],
)
def test_any_objective_trains(vectors: Path, tmp_path: Path, loss: str, settled: dict[str, Any]) -> None:
    toml = settings(tmp_path)
    shown = run("fit", "--data", vectors, "--settings", toml, *SMALL, "--loss", loss, "--out", tmp_path / "m").output
    assert "epoch   1" in shown
    name, values = trained_with(tmp_path / "m")
    assert name == loss.partition(":")[0]
    assert values | settled == values
    epochs = json.loads((tmp_path / "m" / "history.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert all(np.isfinite(epoch["loss"]) and epoch["steps"] > 0 for epoch in epochs)
    weights = Checkpoint.load(tmp_path / "m").weights
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_an_objective_over_offline_negatives(vectors: Path, tmp_path: Path) -> None:
    base = ["fit", "--data", vectors, "--settings", settings(tmp_path), *SMALL]
    run(*base, "--out", tmp_path / "m0")
    run("encode", "--data", vectors, "--checkpoint", tmp_path / "m0", "--out", tmp_path / "v")
    negatives = mine(tmp_path / "v", tmp_path / "n")
    for number, loss in enumerate(("ntxent:offline=softmax", "goal:offline=goal", "sct:offline=OffTri")):
        out = tmp_path / f"m{number + 1}"
        shown = run(*base, "--loss", loss, "--out", out, code=2).output
        assert f"the loss {loss.partition(':')[0]} needs --negatives: the folder `miner mine` wrote" in shown
        assert not out.exists()
        assert "offline" in run(*base, "--loss", loss, "--negatives", negatives, "--out", out).output
        assert trained_with(out)[1]["offline"] == loss.partition("=")[2]
    out = tmp_path / "aoq"
    run(*base, "--loss", "aoq:h_t=3", "--form", "OffTri", "--negatives", negatives, "--out", out)
    assert (trained_with(out)[1]["form"], trained_with(out)[1]["h_t"]) == ("OffTri", 3)


@pytest.mark.parametrize(
    ("section", "flags", "name", "settled"),
    [
        ("name = 'ntxent'\ntau = 0.3", [], "ntxent", {"tau": 0.3}),
        ("name = 'ntxent'\ntau = 0.3\nmask = 'diagonal'", ["--loss", "ntxent:tau=0.05"], "ntxent",
         {"tau": 0.05, "mask": "diagonal"}),
        ("name = 'ntxent'\ntau = 0.3", ["--loss", "goal"], "goal", {"tau": 10.0}),  # the file's loss is another one
        ("margin = 0.4", ["--loss", "selhn"], "selhn", {"margin": 0.4}),
        ("margin = 0.4", [], "triplet", {"margin": 0.4}),
    ],
)  # fmt: skip
def test_the_loss_and_the_model_of_a_settings_file(
    vectors: Path, tmp_path: Path, section: str, flags: list[str], name: str, settled: dict[str, Any]
) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(f"[loss]\n{section}\n[model]\nname = 'vsepp'\ndim = 16\nword_dim = 8\n")
    run("fit", "--data", vectors, "--settings", toml, *SMALL, "--epochs", 1, *flags, "--out", tmp_path / "m")
    found, values = trained_with(tmp_path / "m")
    assert found == name
    assert values | settled == values
    config = Checkpoint.load(tmp_path / "m").model_config
    assert (models.name_of(config), config.dim) == ("vsepp", 16)
