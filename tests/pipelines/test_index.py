"""[index] in a run file: what `miner build-index` and `miner mine --index` make of the same vectors, round by round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.manifest import MANIFEST, open_artifact
from miner.artifacts.pairs import Direction
from miner.cli import main as miner_main
from miner.index import _faiss
from pipelines.cli import main
from pipelines.compare.comparison import Comparison
from pipelines.settings import Settings
from pipelines.stages import Data, declare
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import hashes

IVF = {"factory": "IVF6,SQ8"}
RULES = ["relative-margin:margin=0.2", "hub-cap:most=30"]
DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


def written(base: Path, folder: Path, index: dict[str, Any], **mine: Any) -> Path:
    base.mkdir(exist_ok=True)
    mine = {"recall": 0.8, "recall_sample": 25, **mine}
    raw = raw_settings(folder, mine=mine, run={"rounds": 1, "first_epochs": 1, "epochs": 1, "seed": 0})
    return write_toml(base / "run.toml", {**raw, "index": index})


def run(run_file: Path, code: int = 0, command: str = "run") -> str:
    done = CliRunner().invoke(main, [command, str(run_file), "--run-dir", str(run_file.parent / "run")])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


def by_hand(*arguments: object) -> None:
    done = CliRunner().invoke(miner_main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def about(table: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_artifact(table, "negatives").manifest.meta["provenance"]
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rules"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    base = tmp_path_factory.mktemp("index")
    rules = {"rules": RULES, "num_candidates": 12} if request.param else {}
    run_file = written(base, folder, IVF, **rules)
    run(run_file)
    return base / "run"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_tables_are_those_of_the_commands(finished: Path, tmp_path: Path, direction: Direction) -> None:
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    for side in ("image", "text"):
        (vectors / side).symlink_to(only(finished, f"rounds/001/encode-{side}/*"))
    pd.read_parquet(finished / "pairs" / "pairs.parquet").to_csv(vectors / "pairs.csv", index=False)
    by_hand("build-index", vectors, "--factory", IVF["factory"], "--out", tmp_path / "index", "--threads", 1)
    gallery = "text" if direction == "i2t" else "image"
    made = only(finished, f"rounds/001/index-{gallery}/*") / "index.bin"
    assert made.read_bytes() == (tmp_path / "index" / gallery / "index.bin").read_bytes()

    table = only(finished, f"rounds/001/mine-{direction}/*")
    ruled = (table / "dropped.parquet").exists()
    said = [part for rule in RULES for part in ("--rule", rule)] + ["--num-candidates", 12] if ruled else []
    mined = ["mine", vectors, "--k", 7, "--index", tmp_path / "index", "--recall", 0.8, "--recall-sample", 25]
    by_hand(*mined, *said, "--direction", direction, "--threads", 1, "--out", tmp_path / "hand")
    names = ("negatives.parquet", "shortfalls.parquet", "dropped.parquet")[: 3 if ruled else 2]
    for name in names:
        frames = [pd.read_parquet(place / name) for place in (table, tmp_path / "hand" / direction)]
        pd.testing.assert_frame_equal(*frames)
    if ruled:
        assert open_artifact(table, "negatives").manifest.meta["deepened"]
        assert not (table / "candidates").exists()
    one, other = about(table), about(tmp_path / "hand" / direction)
    for name in ("factory", "search", "recall", "index"):
        assert one[name] == other[name]
    assert (one["index"], one["factory"]) == ("factory", IVF["factory"])
    assert one["recall"]["requested"] == 0.8
    assert one["recall"]["anchors"] == 25
    assert set(one["recall"]["recall"]) >= {"1", "12" if ruled else "7"}


def test_a_killed_stage_goes_on_with_the_same_bytes(finished: Path) -> None:
    before = hashes(finished)
    lost = [p for p in finished.rglob(MANIFEST) if p.parts[-3] in ("index-text", "tune-t2i", "mine-i2t")]
    assert len(lost) == 3
    for manifest in lost:
        manifest.unlink()
    shown = run(finished.parent / "run.toml")
    assert "3 to run" in shown or "stages reused" in shown
    assert hashes(finished) == before
    assert "0 to run" in run(finished.parent / "run.toml")


def test_the_same_bytes_on_any_number_of_threads(finished: Path, tmp_path: Path) -> None:
    settings = json.loads((finished / "settings.json").read_text())
    run_file = written(
        tmp_path, Path(settings["data"]["folder"]), IVF,
        rules=list(settings["mine"]["rules"]), num_candidates=12,
    )  # fmt: skip
    with _faiss.threads(3):
        run(run_file)
    assert hashes(tmp_path / "run") == hashes(finished)


def test_a_comparison_takes_the_section_too(folder: Path, tmp_path: Path) -> None:
    raw = raw_settings(folder)
    del raw["loss"], raw["executor"]
    path = write_toml(tmp_path / "compare.toml", {**raw, "index": IVF})
    path.write_text(path.read_text() + '[[objective]]\nname = "aoq"\n')
    (member, *_) = Comparison.load(path).members(100)
    assert member.settings.index.factory == "IVF6,SQ8"
    assert "r1/tune-i2t" in {stage.name for stage in declare(member.settings, DATA)}


DATA = Data({"train": "a", "dev": "b", "test": "c"}, 84, 206, 210)


def keys(folder: Path, index: dict[str, Any], data: Data = DATA, **mine: Any) -> dict[str, Any]:
    """What determines each stage of the first mined round, parents apart."""
    settings = Settings.parse({**raw_settings(folder, mine=mine), "index": index}, "t")
    return {s.label: (s.parameters, s.parents) for s in declare(settings, data) if s.round == 1}


def test_what_a_setting_touches(folder: Path) -> None:
    exact, same = keys(folder, {}), keys(folder, {"factory": "auto"}, recall=0.5)
    assert exact == same
    assert not any(name.startswith("tune") for name in exact)
    first = keys(folder, IVF)
    for changed, touched in (
        (keys(folder, {"factory": "IVF5,SQ8"}), {"index-image", "index-text"}),
        (keys(folder, {**IVF, "train_sample": 70}), {"index-image", "index-text"}),
        (keys(folder, IVF, recall=0.9), {"tune-i2t", "tune-t2i"}),
        (keys(folder, IVF, recall_sample=30), {"tune-i2t", "tune-t2i"}),
        (keys(folder, IVF, k=8), {"tune-i2t", "tune-t2i", "mine-i2t", "mine-t2i"}),
    ):
        assert {name for name in first if first[name] != changed[name]} == touched
    assert dict(first["mine-i2t"][1])["tuned"] == "r1/tune-i2t"
    assert dict(first["tune-i2t"][1])["index"] == "r1/index-text"
    assert {first[f"tune-{direction}"][0]["k"] for direction in DIRECTIONS} == {7}
    ruled = keys(folder, IVF, rules=["default"])
    assert ruled["tune-i2t"][0]["k"] == 14  # recall is that of the candidates


def test_auto_goes_by_the_number_of_items(folder: Path) -> None:
    many = Data(DATA.fingerprints, 40_000, 5_000_000, 5_000_000)
    found = keys(folder, {"factory": "auto"}, many)
    assert found["index-image"][0] == {"index": "flat"}
    assert found["index-text"][0] == {"index": "factory", "factory": "IVF8192,SQ8", "train_sample": 0, "seed": 3}
    assert "tune-i2t" in found
    assert "tune-t2i" not in found
    settings = Settings.parse({**raw_settings(folder), "index": {"factory": "auto"}}, "t")
    costs = {s.label: s for s in declare(settings, many) if s.round == 1}
    assert 5_000_000 * 24 < costs["index-text"].disk < 5_000_000 * 26  # 16 bytes of codes, 8 of an id
    assert costs["index-text"].memory > 5_000_000 * 4 * 16 + costs["index-text"].disk


@pytest.mark.parametrize(
    ("index", "mine", "words"),
    [
        ({"factory": "IVF4096,SQ8"}, {}, ["[index] over 84 images", "IVF4096,SQ8", "4,096", "there are 84"]),
        ({"factory": "nonsense"}, {}, ["[index] over", "nonsense", "could not parse"]),
        ({"factory": "IVF6,SQ8", "train_sample": 3}, {}, ["train_sample = 3", "6 lists"]),
        ({"factori": "Flat"}, {}, ["[index]", "factori", "'factory'"]),
        (IVF, {"recall": 1.0}, ["[mine]", "recall", "less than 1"]),
        (IVF, {"recall_sample": 0}, ["[mine]", "recall_sample"]),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(
    folder: Path, tmp_path: Path, index: dict[str, Any], mine: dict[str, Any], words: list[str]
) -> None:
    for command in ("plan", "run"):
        shown = run(written(tmp_path, folder, index, **mine), code=3, command=command)
        for word in words:
            assert word in shown, shown
    assert not (tmp_path / "run" / "rounds").exists()


def test_a_two_stage_search_takes_its_candidates_from_the_index(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "data").mkdir()
    folder = write_vectors(tmp_path / "data", num=64)
    np.save(folder / "images.npy", np.load(folder / "images.npy").reshape(64, 3, 8))
    raw = raw_settings(
        folder,
        run={"rounds": 1, "first_epochs": 1, "epochs": 1},
        mine={"num_candidates": 20, "recall_sample": 9, "recall": 0.8},
    )
    raw |= {"index": {"factory": "IVF3,Flat"}, "model": {"name": "scan", "dim": 16, "word_dim": 8}}
    run(write_toml(tmp_path / "run.toml", raw))
    for direction in DIRECTIONS:
        found = about(only(tmp_path / "run", f"rounds/001/mine-{direction}/*"))
        assert (found["metric"], found["num_candidates"], found["factory"]) == ("scan", 20, "IVF3,Flat")
        assert found["recall"]["k"] == 20  # of the candidates, by the vectors
        assert found["stage_one"]["anchors"] == 9  # of the negatives, by the model's own score
