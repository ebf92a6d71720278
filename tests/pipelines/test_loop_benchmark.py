"""The benchmark of the loop runs, at a size that says nothing, and prints its tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
def test_it_prints_its_tables(tmp_path: Path) -> None:
    tiny = ["--images", "240", "--rounds", "1", "--shards", "6", "--repeats", "1", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "benchmarks/loop.py", *tiny],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("of five minutes", "2 workers, shards/s", "Assumed, not measured", "| encode-text |", "| mine-i2t |"):
        assert words in done.stdout
