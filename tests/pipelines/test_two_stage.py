"""The loop with cross-attention models: candidates by an index, negatives by the model's own score.

Vectors have no regions, so images are made of three here.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from miner.artifacts.elements import ElementLists
from miner.artifacts.manifest import MANIFEST, Artifact, open_artifact
from miner.artifacts.pairs import Direction, sides
from pipelines.cli import main
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import hashes
from trainer.checkpoint import Checkpoint
from trainer.data import Dataset, configure, load
from trainer.encode import quiet
from trainer.models import Elements, PairScorer

SMALL = {"dim": 16, "word_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "scan": {"name": "scan", "attention": "t2i", **SMALL},
    "bfan": {"name": "bfan", **SMALL},
}
DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


def pipelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with images of three regions, (rows, 3, 8)."""
    folder = write_vectors(tmp_path_factory.mktemp("regions"), num=64)
    np.save(folder / "images.npy", np.load(folder / "images.npy").reshape(64, 3, 8))
    return folder


def run_file(base: Path, folder: Path, model: str, **mine: Any) -> Path:
    raw = raw_settings(
        folder,
        run={"rounds": 1, "first_epochs": 2, "epochs": 1},
        mine={"num_candidates": 20, "recall_sample": 9, **mine},
        encode={"element_dtype": "float32"},
    )
    return write_toml(base / "run.toml", {**raw, "model": MODELS[model]})


@pytest.fixture(scope="module", params=sorted(MODELS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, regions: Path) -> Path:
    base = tmp_path_factory.mktemp(request.param)
    result = pipelines("run", run_file(base, regions, request.param), "--run-dir", base / "run")
    assert result.exit_code == 0, result.output
    return base / "run"


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def exhaustive(root: Path, train: Dataset) -> np.ndarray:
    """(images, texts): every pair of the training set by the model that mined, one pair at a time."""
    model = cast(PairScorer, Checkpoint.load(only(root, "rounds/000/fit/*")).model())
    pairs = train.pairs
    found = np.empty((pairs.num_images, pairs.num_texts), dtype=np.float32)
    with quiet(model, 1):
        images = model.image_elements(
            torch.from_numpy(np.ascontiguousarray(train.images[np.arange(len(train.images))]))
        )
        for text in range(pairs.num_texts):
            tokens, lengths = model.tokenizer.encode([pairs.texts[text]])
            words = model.text_elements(torch.from_numpy(tokens), torch.from_numpy(lengths))
            for image in range(pairs.num_images):
                one = Elements(images.values[image : image + 1], images.lengths[image : image + 1])
                found[image, text] = float(model.pair_scores(one, words)[0])
    return found


@pytest.fixture(scope="module")
def truth(finished: Path, regions: Path) -> tuple[Dataset, np.ndarray]:
    train = load(configure("vectors", {"folder": regions}), "train")
    return train, exhaustive(finished, train)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_negatives_are_ranked_by_the_models_own_score(
    finished: Path, truth: tuple[Dataset, np.ndarray], direction: Direction
) -> None:
    train, scores = truth
    pairs = train.pairs
    frame = pd.read_parquet(only(finished, f"rounds/001/mine-{direction}/*/negatives.parquet"))
    anchors, gallery = sides(direction)
    matrix = scores if direction == "i2t" else scores.T
    row_of = {side: {name: row for row, name in enumerate(pairs.ids(side))} for side in (anchors, gallery)}
    offsets, positives = pairs.positives(anchors)
    for anchor_id, rows in frame.groupby("anchor_id"):
        anchor = row_of[anchors][str(anchor_id)]
        own = positives[offsets[anchor] : offsets[anchor + 1]]
        found = [row_of[gallery][name] for name in rows["negative_id"]]
        assert not set(found) & set(own.tolist())
        assert len(found) == 7
        np.testing.assert_allclose(rows["score"], matrix[anchor, found], atol=2e-6)
        assert (np.diff(rows["score"]) <= 0).all()
        np.testing.assert_allclose(rows["lowest_positive"], matrix[anchor, own].min(), atol=2e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_the_first_stage_missed_is_measured(
    finished: Path, truth: tuple[Dataset, np.ndarray], direction: Direction
) -> None:
    train, scores = truth
    table = open_artifact(only(finished, f"rounds/001/mine-{direction}/*"), "negatives")
    about = table.manifest.meta["provenance"]
    assert (about["num_candidates"], about["stage_one"]["anchors"]) == (20, 9)
    assert about["metric"] in MODELS
    assert set(about["stage_one"]["recall"]) == {"1", "7"}
    assert all(0 <= share <= 1 for share in about["stage_one"]["recall"].values())
    # Over all anchors, from the table: a sample of nine must not be far off.
    pairs, (anchors, gallery) = train.pairs, sides(direction)
    matrix = scores if direction == "i2t" else scores.T
    offsets, positives = pairs.positives(anchors)
    frame = pd.read_parquet(only(finished, f"rounds/001/mine-{direction}/*/negatives.parquet"))
    kept = {name: set(rows["negative_id"]) for name, rows in frame.groupby("anchor_id")}
    shares = []
    for anchor, name in enumerate(pairs.ids(anchors)):
        free = np.setdiff1d(np.arange(matrix.shape[1]), positives[offsets[anchor] : offsets[anchor + 1]])
        hardest = sorted(free, key=lambda row: -matrix[anchor, row])[:7]
        shares.append(np.mean([pairs.ids(gallery)[row] in kept[name] for row in hardest]))
    assert about["stage_one"]["recall"]["7"] == pytest.approx(np.mean(shares), abs=0.25)


def test_with_everything_a_candidate_nothing_is_missed(tmp_path: Path, regions: Path) -> None:
    file = run_file(tmp_path, regions, "scan", num_candidates=1000, recall_sample=1000)
    done = pipelines("run", file, "--run-dir", tmp_path / "run")
    assert done.exit_code == 0
    assert "found 100.0% of the 7 hardest" in done.output
    assert "that is low" not in done.output
    for direction in DIRECTIONS:
        table = open_artifact(only(tmp_path / "run", f"rounds/001/mine-{direction}/*"), "negatives")
        assert set(table.manifest.meta["provenance"]["stage_one"]["recall"].values()) == {1.0}


def test_a_run_says_what_its_search_missed(tmp_path: Path, regions: Path) -> None:
    """While it mines, in its closing table, in `status`, on its page, and to those who watch."""
    file, run = run_file(tmp_path, regions, "scan", k=2, num_candidates=2, recall_sample=9), tmp_path / "run"
    with open(file, "a") as settings:
        settings.write('[watch]\ntrackers = ["json_lines"]\n')
    done = pipelines("run", file, "--run-dir", run)
    assert done.exit_code == 0, done.output
    (round_,) = [each for each in json.loads(pipelines("status", run, "--json").output)["rounds"] if each["recall"]]
    for direction in DIRECTIONS:
        table = open_artifact(only(run, f"rounds/001/mine-{direction}/*"), "negatives")
        share = table.manifest.meta["provenance"]["stage_one"]["recall"]["2"]
        assert share < 0.9
        assert round_["recall"][direction] == share
        assert f"found {share:.1%} of the 2 hardest (9 anchors compared with everything)" in done.output
        assert f"r1/mine-{direction}: that is low; raise mine.num_candidates (2)" in done.output
        assert f"{100 * share:.1f} %" in (run / "report.html").read_text()
        events = [json.loads(line) for line in (run / "watch" / "events.jsonl").read_text().splitlines()]
        told = [event.get("figures") for event in events if event["event"] == "stage_done"]
        assert {f"tables/recall_{direction}": share} in told
    assert "search found i2t" in done.output


def test_rules_choose_by_the_models_own_score(tmp_path: Path, regions: Path) -> None:
    """With everything a candidate: the same negatives as without a rule, but for what the rule drops."""
    everything = {"num_candidates": 1000, "recall_sample": 2}
    frames = {}
    for name, mine in (("plain", {"k": 30}), ("ruled", {"k": 7, "rules": ["relative-margin:margin=0.05"]})):
        (tmp_path / name).mkdir()
        file = run_file(tmp_path / name, regions, "scan", **everything, **mine)
        shown = pipelines("run", file, "--run-dir", tmp_path / name / "run")
        assert shown.exit_code == 0, shown.output
        frames[name] = pd.read_parquet(only(tmp_path / name / "run", "rounds/001/mine-i2t/*/negatives.parquet"))
    plain = frames["plain"]
    kept = plain[plain["score"] <= plain["lowest_positive"] - 0.05 * plain["lowest_positive"].abs()]
    assert 0 < len(kept) < len(plain)
    expected = {anchor: rows["negative_id"].tolist()[:7] for anchor, rows in kept.groupby("anchor_id", observed=True)}
    ruled = {anchor: rows["negative_id"].tolist() for anchor, rows in frames["ruled"].groupby("anchor_id")}
    enough = [anchor for anchor, rows in expected.items() if len(rows) == 7]
    assert enough
    assert {anchor: ruled[anchor] for anchor in enough} == {anchor: expected[anchor] for anchor in enough}


def test_elements_lie_beside_the_vectors(finished: Path, truth: tuple[Dataset, np.ndarray]) -> None:
    train, _ = truth
    texts: Artifact = open_artifact(only(finished, "rounds/001/encode-text/*"), "embeddings")
    lists = ElementLists.open(texts)
    assert len(lists) == train.pairs.num_texts
    _, lengths = lists.take(np.arange(len(lists)))
    model = Checkpoint.load(only(finished, "rounds/000/fit/*")).model()
    assert lengths.tolist() == model.tokenizer.encode(train.pairs.texts)[1].tolist()
    assert not list(finished.rglob("*.done"))


def test_a_killed_stage_goes_on_with_the_same_bytes(finished: Path) -> None:
    before = hashes(finished)
    lost = [p for p in finished.rglob(MANIFEST) if p.parts[-3] in ("encode-text", "mine-i2t")]
    assert len(lost) == 2
    for manifest in lost:
        manifest.unlink()
    # As if it died between two parts: one file of a shard is gone too.
    next(lost[0].parent.parent.parent.glob("encode-text/*/elements-00001.npy")).unlink()
    result = pipelines("run", finished.parent / "run.toml", "--run-dir", finished)
    assert result.exit_code == 0, result.output
    assert hashes(finished) == before


def test_the_plan_counts_the_measuring_and_refuses_too_few_candidates(finished: Path, tmp_path: Path) -> None:
    plan = pipelines("plan", finished.parent / "run.toml", "--run-dir", tmp_path / "new")
    assert plan.exit_code == 0, plan.output
    settings = json.loads((finished / "settings.json").read_text())
    model = settings["model"]["name"]
    file = run_file(tmp_path, Path(settings["data"]["folder"]), model, num_candidates=6)
    refused = pipelines("plan", file, "--run-dir", tmp_path / "new")
    assert refused.exit_code == 3
    assert "mine.num_candidates = 6 is smaller than mine.k = 7" in refused.output


def test_a_plain_model_does_not_read_these_settings(tmp_path: Path, folder: Path) -> None:
    """Changing them leaves its run as it is."""
    raw = raw_settings(folder, run={"rounds": 1, "first_epochs": 1, "epochs": 1})
    assert pipelines("run", write_toml(tmp_path / "run.toml", raw), "--run-dir", tmp_path / "run").exit_code == 0
    changed = {
        **raw,
        "mine": {**raw["mine"], "num_candidates": 9},
        "encode": {**raw["encode"], "element_dtype": "float32"},
    }
    again = pipelines("run", write_toml(tmp_path / "run.toml", changed), "--run-dir", tmp_path / "run")
    assert again.exit_code == 0
    stale = [line for line in again.output.splitlines() if "r1/mine" in line or "r1/fit" in line]
    assert not any("changed" in line for line in stale)


def test_a_triplet_asks_for_no_candidates(tmp_path: Path, regions: Path) -> None:
    raw = raw_settings(regions, mine={"num_candidates": 2})
    file = write_toml(tmp_path / "run.toml", {**raw, "model": MODELS["scan"], "loss": {"name": "triplet"}})
    assert pipelines("plan", file, "--run-dir", tmp_path / "new").exit_code == 0


def test_unequal_positives_are_in_the_set(truth: tuple[Dataset, np.ndarray], regions: Path) -> None:
    train, _ = truth
    counts = np.diff(train.pairs.positives("image")[0])
    assert counts.min() < counts.max()
    with open(regions / "pairs.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) > train.pairs.num_pairs
    assert (np.diff(train.pairs.positives("text")[0]) > 1).any()
