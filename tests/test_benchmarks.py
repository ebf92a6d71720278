"""Benchmarks that need a big machine run here at a small size, so that they work where one is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, script: str, *given: str) -> dict[str, object]:
    out = tmp_path / "out.json"
    where = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *given, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=where)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(out.read_text())
    return found


def test_mining_on_a_gpu(tmp_path: Path) -> None:
    small = ["--images", "300", "--texts", "700", "--dim", "16", "--k", "20", "--sample", "30", "--only", "mining"]
    mining = run(tmp_path, "gpu.py", *small)["mining"]
    assert isinstance(mining, dict)
    assert mining["same ids"] >= 0.999
    assert mining["size"] == [300, 700, 16, 20]


@pytest.mark.heavy
def test_training_on_a_gpu(tmp_path: Path) -> None:
    training = run(tmp_path, "gpu.py", "--dim", "16", "--epochs", "1", "--steps", "2", "--only", "training")["training"]
    assert isinstance(training, dict)
    assert set(training) == {"eager float32", "bfloat16", "bfloat16, compiled"}


@pytest.mark.heavy
def test_a_projected_round(tmp_path: Path) -> None:
    found = run(
        tmp_path, "round.py", "--dim", "16", "--items", "40", "--steps", "1", "--shares", "300", "250", "--threads", "1"
    )
    projected = found["projected"]
    assert isinstance(projected, dict)
    assert set(projected) == {"encode", "index", "mine", "fit"}
    assert min(projected.values()) > 0


@pytest.mark.heavy
def test_steps_and_encoding(tmp_path: Path) -> None:
    small = ["--dim", "16", "--epochs", "1", "--steps", "1", "--repeats", "1", "--threads", "1"]
    found = run(tmp_path, "training.py", *small)
    steps, encode = found["steps"], found["encode"]
    assert isinstance(steps, dict)
    assert isinstance(encode, dict)
    assert steps["triplet"]["times the triplet"] == 1
    assert steps["triplet"]["with a negative"] == 0
    assert steps["encoded in addition"]["with a negative"] == 1
    assert steps["encoded in addition"]["texts"] > steps["one neighbourhood"]["texts"]
    assert set(encode) == {"image", "text"}
