"""The whole loop in this process, on a small set: results, resuming, refusals. Ray has its own file."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from miner.artifacts.lock import hold
from pipelines.cli import main
from tests.pipelines.builders import raw_settings, write_toml, write_vectors


def pipelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def hashes(root: Path) -> dict[str, str]:
    """Every file of every artifact, by its name in the run folder."""
    found = sorted(p for p in (root / "rounds").rglob("*") if p.is_file() and "report" not in p.parts)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, Path]:
    """(run file, run folder) of a run that is done."""
    base = tmp_path_factory.mktemp("loop")
    run_file = write_toml(base / "run.toml", raw_settings(folder))
    result = pipelines("run", run_file, "--run-dir", base / "run")
    assert result.exit_code == 0, result.output
    return run_file, base / "run"


def test_a_run_leaves_tables_metrics_and_a_page(finished: tuple[Path, Path]) -> None:
    _, root = finished
    assert (root / "report.html").read_text().lower().startswith("<!doctype html>")
    tables = sorted((root / "rounds").glob("*/mine-*/*/negatives.parquet"))
    assert [t.parent.parent.name for t in tables] == ["mine-i2t", "mine-t2i"] * 2
    frame = pd.read_parquet(tables[0])
    assert list(frame.columns) == ["anchor_id", "rank", "negative_id", "score", "lowest_positive"]
    assert (frame.groupby("anchor_id").size() == 7).all()
    assert not list(root.rglob("*.done"))
    assert not list(root.rglob(".tmp-*"))
    assert not list(root.rglob("epoch-*"))


def test_no_mined_negative_is_a_positive(finished: tuple[Path, Path], folder: Path) -> None:
    _, root = finished
    with open(folder / "pairs.csv", newline="") as file:
        belong = {(row["image_id"], row["text_id"]) for row in csv.DictReader(file)}
    for path in (root / "rounds").glob("*/mine-*/*/negatives.parquet"):
        frame = pd.read_parquet(path)
        ends = ["anchor_id", "negative_id"] if "i2t" in str(path) else ["negative_id", "anchor_id"]
        mined = set(zip(*(frame[end] for end in ends), strict=True))
        assert mined
        assert not mined & belong


def test_a_second_call_does_nothing(finished: tuple[Path, Path]) -> None:
    run_file, root = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    result = pipelines("run", run_file, "--run-dir", root)
    assert result.exit_code == 0
    assert "0 to run" in result.output
    assert {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")} == before


def test_the_same_settings_elsewhere_give_the_same_bytes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run_file, root = finished
    assert pipelines("run", run_file, "--run-dir", tmp_path / "again").exit_code == 0
    assert hashes(tmp_path / "again") == hashes(root)


def test_plan_and_status_tell_what_is_done(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    run_file, root = finished
    assert "0 to run" in pipelines("plan", run_file, "--run-dir", root).output
    found = json.loads(pipelines("status", root, "--json").output)
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert [r["round"] for r in found["rounds"]] == [0, 1, 2]
    assert set(found["rounds"][2]["overlap"]) == {"i2t", "t2i"}
    assert 0 < found["rounds"][2]["metrics"]["test"]["rsum"] <= 600

    changed = write_toml(tmp_path / "run.toml", raw_settings(folder, mine={"k": 8}))
    shown = pipelines("plan", changed, "--run-dir", root).output
    assert "parameters.k: 7 -> 8" in shown
    told = json.loads(pipelines("plan", changed, "--run-dir", root, "--json").output)
    assert (told["run_dir"], told["stopped"]) == (str(root), None)
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert {name for name, stage in stages.items() if stage["state"] == "stale"} == {"r1/mine-i2t", "r1/mine-t2i"}
    assert "parameters.k: 7 -> 8" in stages["r1/mine-i2t"]["why"]
    assert stages["r1/mine-i2t"]["tasks"] == 3
    assert stages["r1/mine-i2t"]["disk"] > 0 < stages["r1/mine-i2t"]["memory"]
    assert "after r1/mine-i2t" in shown


def test_status_of_a_run_without_its_pairs_says_what_to_do(finished: tuple[Path, Path], tmp_path: Path) -> None:
    root = shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(root / "pairs")
    result = pipelines("status", root)
    assert result.exit_code == 3
    assert f"{root}: the training pairs of this run are missing; `pipelines run` writes them" in result.output
    assert pipelines("run", finished[0], "--run-dir", root).exit_code == 0
    assert pipelines("status", root).exit_code == 0


def test_a_log_is_no_object(finished: tuple[Path, Path]) -> None:
    result = pipelines("run", finished[0], "--run-dir", finished[1], "--log-json", "s3://bucket/log.jsonl")
    assert result.exit_code == 2
    assert "--log-json s3://bucket/log.jsonl: give a file of this machine" in result.output


def test_a_file_is_no_run_folder(finished: tuple[Path, Path]) -> None:
    result = pipelines("run", finished[0], "--run-dir", finished[0])
    assert result.exit_code == 3
    assert f"{finished[0]}: this is a file; give a folder" in result.output


def test_a_run_folder_of_another_data_set_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, root = finished
    (tmp_path / "other").mkdir()
    other = write_toml(tmp_path / "run.toml", raw_settings(write_vectors(tmp_path / "other", seed=1)))
    before = hashes(root)
    result = pipelines("run", other, "--run-dir", root)
    assert result.exit_code == 3
    assert "another data set" in result.output
    assert hashes(root) == before


def test_changed_image_vectors_are_noticed(folder: Path, tmp_path: Path) -> None:
    import numpy as np

    data = write_vectors(tmp_path)
    run_file = write_toml(tmp_path / "run.toml", raw_settings(data, run={"rounds": 0}))
    assert pipelines("run", run_file, "--run-dir", tmp_path / "run").exit_code == 0
    np.save(data / "images.npy", np.load(data / "images.npy") + 1)
    assert pipelines("run", run_file, "--run-dir", tmp_path / "run").exit_code == 3


@pytest.mark.parametrize("victim", ["manifest.json", "negatives.parquet", "weights.safetensors", "index.bin"])
def test_damage_is_said_and_not_used(finished: tuple[Path, Path], victim: str, tmp_path: Path) -> None:
    run_file, root = finished
    copy = tmp_path / "run"
    _copy(root, copy)
    path = (
        sorted((copy / "rounds").rglob(victim))[0]
        if victim != "manifest.json"
        else sorted(copy.rglob("mine-*/*/manifest.json"))[0]
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    for later in (copy / "rounds" / "002").glob("*"):
        _remove(later)  # so that there is work that needs what was damaged
    if victim in ("weights.safetensors", "index.bin"):
        for later in ("mine-i2t", "mine-t2i", "encode-image", "encode-text", "fit", "evaluate"):
            if not (victim == "index.bin" and later.startswith("encode")):
                _remove(copy / "rounds" / "001" / later)
    result = pipelines("run", run_file, "--run-dir", copy)
    assert result.exit_code == 4, result.output
    assert "damaged" in result.output or "not the file that was committed" in result.output
    assert str(path.parent.name) in result.output


def test_a_second_writer_is_refused(finished: tuple[Path, Path]) -> None:
    run_file, root = finished
    with hold(root):
        result = pipelines("run", run_file, "--run-dir", root)
    assert result.exit_code == 5
    assert "another command is writing" in result.output


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"mine": {"k": 100000}}, 3, "larger than the gallery"),
        ({"data": {"folder": "nowhere"}}, 3, "nowhere"),
        ({"fit": {"nope": 1}}, 3, "nope"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], code: int, words: str
) -> None:
    run_file = write_toml(tmp_path / "run.toml", raw_settings(folder, **sections))
    result = pipelines("run", run_file, "--run-dir", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_wrong_usage(tmp_path: Path) -> None:
    assert pipelines("run").exit_code == 2
    assert pipelines("run", tmp_path / "x.toml", "--demo").exit_code == 2
    assert pipelines("status", tmp_path).exit_code == 3


def test_help_is_light() -> None:
    for module in ("miner", "trainer", "pipelines"):
        code = (
            f"import sys; from {module}.cli import main\n"
            "try: main(['--help'])\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'faiss', 'ray', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
            "sys.exit(f'{heavy} imported' if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Exit codes" in done.stdout


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
