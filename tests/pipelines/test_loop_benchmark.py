"""The benchmark of the loop: its arithmetic on a log written by hand; that it runs, at a size that says nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop_benchmark", ROOT / "benchmarks" / "loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_but_the_work_is_orchestration(loop: ModuleType, tmp_path: Path) -> None:
    def write(name: str, stages: list[tuple[str, float, float]]) -> Path:
        lines = []
        for stage, begun, ended in stages:
            lines.append({"stage": stage, "event": "start", "time": begun})
            lines.append({"stage": stage, "event": "done", "time": ended, "seconds": ended - begun})
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    def turn(name: str, slower: float) -> tuple[Path, Path]:
        """One process, and Ray, where round 1's end and all after it come later by so much."""
        inline = [("r1/encode-image", 0, 8), ("r1/fit", 8, 20), ("r1/evaluate", 20, 22), ("r2/fit", 22, 30)]
        ray = [("r0/fit", 0, 50), ("r1/encode-image", 60, 80), ("r1/fit", 81, 100 + slower)]
        later = [("r1/evaluate", 101, 105), ("r2/fit", 110, 130), ("r2/evaluate", 131, 133), ("r2/report", 140, 170)]
        ray += [(stage, begun + slower, ended + slower) for stage, begun, ended in later]
        return write(f"{name}-inline", inline), write(f"{name}-ray", ray)

    turns = [turn("slow", 12), turn("quick", 0), turn("usual", 3)]
    assert loop.walls(turns[1][1]) == {1: 50, 2: 23}
    said: list[str] = []
    fixed = loop.orchestration(turns, said.append)
    # 50, 53 and 62 s, of which 20 were work and 2 evaluation; 33 of 300.
    assert "| 1 | 53.0 | 20.0 | 2.0 | 31.0 (28.0 to 40.0) | 11.0% |" in said
    assert fixed == {1: 31, 2: 15}


def test_a_rate_counts_no_start(loop: ModuleType) -> None:
    times = [10.0, 11.0, 11.5, 12.0, 12.5, 13.0]  # two workers begin late, then a shard every half second
    events = [{"event": "shard_done", "round": 1, "stage": "mine-i2t", "time": time} for time in times]
    others = [{"event": "shard_done", "round": 2, "stage": "mine-t2i", "time": 0.0}]
    assert loop.rates([*events, *others], 2) == {"mine-i2t": 2.0}


@pytest.mark.heavy
def test_it_prints_its_tables(tmp_path: Path) -> None:
    sizes = ["--images", "240", "--few", "120", "--rounds", "1", "--shards", "6", "--repeats", "1"]
    tiny = [*sizes, "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "benchmarks/loop.py", *tiny],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("of five minutes", "2 workers, shards/s", "Assumed, not measured", "| encode-text |", "| mine-i2t |"):
        assert words in done.stdout
