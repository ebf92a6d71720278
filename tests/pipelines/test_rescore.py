"""`trainer rescore`: the two stages by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from miner.artifacts.manifest import open_artifact
from miner.cli import main as miner_main
from tests.pipelines.builders import write_vectors
from trainer.checkpoint import Checkpoint
from trainer.cli import main as trainer_main
from trainer.data import configure, load
from trainer.models import PairScorer
from trainer.rescoring import score_all


def call(main: Any, *arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def trainer(*arguments: object) -> Result:
    return call(trainer_main, *arguments)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SCAN model, its vectors and 30 candidates per anchor."""
    base = tmp_path_factory.mktemp("rescore")
    (base / "data").mkdir()
    write_vectors(base / "data", num=64)
    images = np.load(base / "data" / "images.npy")
    np.save(base / "data" / "images.npy", images.reshape(64, 3, 8))
    fit = ("fit", "--data", base / "data", "--epochs", 1, "--batch-size", 16, "--threads", 1, "--lr", 0.01)
    assert trainer(*fit, "--model", "scan:dim=16,word_dim=8", "--out", base / "scan").exit_code == 0
    encoded = trainer("encode", "--data", base / "data", "--checkpoint", base / "scan", "--out", base / "vectors")
    assert encoded.exit_code == 0, encoded.output
    mined = call(miner_main, "mine", base / "vectors", "--k", 30, "--direction", "both", "--out", base / "candidates")
    assert mined.exit_code == 0, mined.output
    return base


def rescore(base: Path, out: Path, **changes: Any) -> Result:
    given: dict[str, Any] = {
        "data": base / "data",
        "checkpoint": base / "scan",
        "vectors": base / "vectors",
        "candidates": base / "candidates",
        "k": 6,
        "recall-sample": 20,
        "out": out,
        **changes,
    }
    return trainer("rescore", *(part for key, value in given.items() for part in (f"--{key}", value)))


def test_candidates_are_ranked_by_the_models_score_and_trained_on(base: Path, tmp_path: Path) -> None:
    result = rescore(base, tmp_path / "negatives")
    assert result.exit_code == 0, result.output
    assert "20 anchors scored with everything" in result.output
    train = load(configure("vectors", {"folder": base / "data"}), "train")
    pairs = train.pairs
    truth = score_all(cast(PairScorer, Checkpoint.load(base / "scan").model()), train)
    row = {"image": {n: r for r, n in enumerate(pairs.image_ids)}, "text": {n: r for r, n in enumerate(pairs.text_ids)}}
    for direction in ("i2t", "t2i"):
        kept = pd.read_parquet(tmp_path / "negatives" / direction / "negatives.parquet")
        candidates = pd.read_parquet(base / "candidates" / direction / "negatives.parquet")
        anchor, other = ("image", "text") if direction == "i2t" else ("text", "image")

        def scores(frame: pd.DataFrame, anchor: str = anchor, other: str = other) -> np.ndarray:
            rows = {anchor: frame["anchor_id"].map(row[anchor]), other: frame["negative_id"].map(row[other])}
            return truth[rows["image"], rows["text"]]

        np.testing.assert_allclose(kept["score"], scores(kept), atol=3e-3)  # elements are stored as float16
        best = (
            candidates.assign(score=scores(candidates)).groupby("anchor_id")["score"].nlargest(6).groupby("anchor_id")
        )
        np.testing.assert_allclose(kept.groupby("anchor_id")["score"].sum(), best.sum(), atol=2e-2)
        about = open_artifact(tmp_path / "negatives" / direction, "negatives").manifest.meta["provenance"]
        assert (about["metric"], about["num_candidates"], about["stage_one"]["anchors"]) == ("scan", 30, 20)
    again = rescore(base, tmp_path / "negatives")
    assert "i2t: already done" in again.output
    fit = ("fit", "--data", base / "data", "--quintuplet", "--negatives", tmp_path / "negatives", "--epochs", 1)
    trained = trainer(*fit, "--threads", 1, "--start", base / "scan", "--batch-size", 16, "--out", tmp_path / "next")
    assert trained.exit_code == 0, trained.output


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    few = rescore(base, tmp_path / "few", k=31)
    assert few.exit_code == 3
    assert "holds 30 candidates per anchor; mine several times k" in few.output
    fit = ("fit", "--data", base / "data", "--epochs", 1, "--batch-size", 16, "--threads", 1, "--out")
    assert trainer(*fit, tmp_path / "plain", "--model", "vsepp:dim=16,word_dim=8").exit_code == 0
    plain = rescore(base, tmp_path / "out", checkpoint=tmp_path / "plain")
    assert plain.exit_code == 3
    assert "vsepp scores by dot products" in plain.output
    other_model = ("--model", "scan:dim=16,word_dim=8", "--seed", 5)
    assert trainer(*fit, tmp_path / "other", *other_model).exit_code == 0
    other = rescore(base, tmp_path / "out", checkpoint=tmp_path / "other")
    assert other.exit_code == 3
    assert "encoded by another model" in other.output
    assert not (tmp_path / "out").exists()
