"""Rules of [stop]: what they decide by hand-made figures, and whole runs that are stopped and go on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.store import LocalStore
from pipelines import log, loop
from pipelines.cli import main
from pipelines.evidence import dev_rsums, gpu_hours, gpu_hours_by_stage, stop_of
from pipelines.settings import Settings
from pipelines.stop import Rule, Stop, StopConfig, best_of, decide
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_loop import hashes

NEVER_RISES = {"patience": 1, "min_delta": 1000.0}


def pipelines(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def never() -> float:
    raise AssertionError("the budget was asked for, and no rule needs it")


def stopped(
    config: dict[str, Any],
    rsums: Sequence[float],
    overlaps: Sequence[float | None] = (),
    rounds: int = 9,
    fitted: int | None = None,
    hours: Callable[[], float] = never,
) -> tuple[int, Rule] | None:
    last = len(rsums) - 1 if fitted is None else fitted
    stop = decide(StopConfig(**config), rounds, rsums, lambda r: overlaps[r], last, hours)
    return None if stop is None else (stop.round, stop.rule)


@pytest.mark.parametrize(
    ("config", "rsums", "last"),
    [
        ({"patience": 1}, [10, 11, 12], None),
        ({"patience": 1}, [10, 10, 12], 1),
        ({"patience": 2}, [10, 11, 10.9, 11, 12], 3),
        ({"patience": 2}, [10, 11, 10.9, 11.1, 11, 11.1], 5),
        ({"patience": 2}, [10, 9], None),
        ({"patience": 2}, [10, 9, 8, 99], 2),
        # Small steps do not count one by one, and do once they add up.
        ({"patience": 2, "min_delta": 1.0}, [10, 10.6, 11.2, 11.8, 12.4], None),
        ({"patience": 2, "min_delta": 1.0}, [10, 10.4, 10.8, 11.2], 2),
        ({"patience": 1, "min_delta": 1.0}, [10, 11], 1),
        ({"patience": 1}, [], None),
        ({}, [10, 9, 8, 7], None),
    ],
)
def test_patience(config: dict[str, Any], rsums: list[float], last: int | None) -> None:
    assert stopped(config, rsums) == (None if last is None else (last, "patience"))


def test_the_last_round_is_no_stop() -> None:
    assert stopped({"patience": 1}, [10, 11, 10], rounds=2) is None
    assert stopped({"patience": 1}, [10, 11, 10], rounds=3) == (2, "patience")
    assert stopped({"overlap": 0.5}, [10, 11, 12], [None, None, 0.9], rounds=2) is None
    assert stopped({"gpu_hours": 1}, [10, 11, 12], rounds=2) is None


def test_overlap_is_of_rounds_that_are_evaluated() -> None:
    overlaps = [None, None, 0.5, 0.9]
    assert stopped({"overlap": 0.9}, [10, 11, 12, 13], overlaps) == (3, "overlap")
    assert stopped({"overlap": 0.9}, [10, 11, 12], overlaps) is None
    assert stopped({"overlap": 0.5}, [10, 11, 12, 13], overlaps) == (2, "overlap")
    assert stopped({"overlap": 0.91}, [10, 11, 12, 13], overlaps) is None


def test_the_earliest_rule_is_the_one() -> None:
    both = {"patience": 2, "overlap": 0.8}
    assert stopped(both, [10, 9, 8, 7], [None, None, 0.1, 0.9]) == (2, "patience")
    assert stopped(both, [10, 11, 10, 9], [None, None, 0.8, 0.9]) == (2, "overlap")
    assert stopped({"patience": 1, "gpu_hours": 1}, [10, 9, 8], fitted=2) == (1, "patience")


def test_a_budget_ends_after_the_last_trained_round() -> None:
    assert stopped({"gpu_hours": 2}, [10], fitted=1, hours=lambda: 2.0) == (1, "gpu_hours")
    assert stopped({"gpu_hours": 2}, [10], fitted=1, hours=lambda: 1.99) is None
    assert stopped({"gpu_hours": 2}, [], fitted=-1, hours=lambda: 5.0) == (0, "gpu_hours")


def test_a_stop_is_said_in_a_sentence() -> None:
    stop = decide(StopConfig(patience=2, min_delta=0.1), 9, [10, 11, 10, 9], lambda r: None, 3, never)
    assert str(stop) == (
        "stopped after round 3: dev rsum did not rise by more than 0.1 in 2 rounds (9.0, after 11.0 in round 1; "
        "[stop] patience = 2)"
    )


def test_the_best_round_is_the_first_of_equals() -> None:
    assert [best_of(each) for each in ([], [3.0], [3, 5, 5, 4], [3, 5, 6, 4])] == [None, 0, 1, 2]


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ({"patience": 0}, "patience"),
        ({"min_delta": 0.5}, "does nothing without patience"),
        ({"overlap": 1.5}, "overlap"),
        ({"gpu_hours": 0}, "gpu_hours"),
        ({"patince": 1}, "did you mean 'patience'"),
    ],
)
def test_a_wrong_rule_is_refused(stop: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=words):
        Settings.parse(raw_settings(folder, stop=stop), "t")


def test_overlap_of_a_loss_without_tables_is_refused(folder: Path) -> None:
    raw = {**raw_settings(folder, stop={"overlap": 0.9}), "loss": {"name": "triplet"}}
    with pytest.raises(BadInput, match="mines none"):
        Settings.parse(raw, "t")


def test_gpu_hours_are_those_of_every_attempt(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    def add(prefix: str, event: str, **about: float) -> None:
        log.append(store, {"prefix": prefix, "stage": f"r1/{prefix}", "event": event, **about})

    assert gpu_hours(store) == 0
    add("a", "start", gpus=4)
    add("a", "epoch", gpus=4, seconds=900)
    add("a", "epoch", gpus=4, seconds=900)
    assert gpu_hours(store) == 2, "killed: its epochs"
    add("a", "start", gpus=2)
    assert gpu_hours(store) == 2
    add("b", "start")
    add("a", "epoch", gpus=2, seconds=1000)
    add("a", "done", gpus=2, seconds=1800)
    assert gpu_hours(store) == 3, "of what is done, the whole"
    add("b", "done", seconds=3600)
    assert gpu_hours(store) == 4, "a log without GPUs is of one"
    assert gpu_hours_by_stage(store) == {"r1/a": 3, "r1/b": 1}
    with open(tmp_path / log.LOG, "a") as file:
        file.write('{"prefix": "b", "event": "do')
    assert gpu_hours(store) == 4


@pytest.fixture
def run_file(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def written(**stop: float) -> Path:
        raw = raw_settings(folder, **({"stop": stop} if stop else {}))
        return write_toml(tmp_path / "run.toml", raw)

    return written


def test_a_run_is_stopped_and_goes_on(finished_run: Path, run_file: Callable[..., Path], tmp_path: Path) -> None:
    root, whole = tmp_path / "run", hashes(finished_run / "run")
    first = pipelines("run", run_file(**NEVER_RISES), "--run-dir", root).output
    assert "stopped after round 1: dev rsum did not rise by more than 1000 in 1 round (" in first
    assert hashes(root) == {name: digest for name, digest in whole.items() if "/002/" not in f"/{name}"}
    assert (root / "report.html").is_file()
    found = json.loads(pipelines("status", root, "--json").output)
    assert (found["stopped"]["round"], found["stopped"]["rule"]) == (1, "patience")
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert [r["round"] for r in found["rounds"]] == [0, 1]

    again = pipelines("run", run_file(**NEVER_RISES), "--run-dir", root).output
    assert "0 to run" in again
    assert "stopped after round 1" in again
    assert "stopped after round 1" in pipelines("plan", run_file(**NEVER_RISES), "--run-dir", root).output
    assert "stopped after round 1" in pipelines("status", root).output

    assert "stopped after" not in pipelines("run", run_file(patience=2, min_delta=1000.0), "--run-dir", root).output
    assert hashes(root) == whole
    # What the rule would not have begun stays, and is not shown.
    page = (root / "report.html").read_bytes()
    assert "0 to run" in pipelines("run", run_file(**NEVER_RISES), "--run-dir", root).output
    assert hashes(root) == whole
    assert (root / "report.html").read_bytes() != page
    shutil.rmtree(root / "rounds/001/report")
    pipelines("run", run_file(**NEVER_RISES), "--run-dir", root)
    shown = re.findall(r'<th scope="row">(\d+)', (root / "report.html").read_text())
    assert shown == ["0", "1"], "a page made while later rounds were there"
    rounds = json.loads(pipelines("status", root, "--json").output)["rounds"]
    assert [r["round"] for r in rounds] == [0, 1]


@pytest.mark.parametrize("section", [{"stop": {"patience": 9}}, {"watch": {"trackers": ["json_lines", "prometheus"]}}])
def test_neither_rules_nor_trackers_change_an_artifact(
    finished_run: Path, folder: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    run_file = write_toml(tmp_path / "run.toml", raw_settings(folder, **section))
    assert ", 0 to run." in pipelines("plan", run_file, "--run-dir", finished_run / "run").output


def test_a_spent_budget_leaves_round_0(finished_run: Path, run_file: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shown = pipelines("run", run_file(gpu_hours=1e-9), "--run-dir", root).output
    assert "stopped after round 0: 0.00 GPU-hours are spent ([stop] gpu_hours = 1e-09)" in shown
    found = json.loads(pipelines("status", root, "--json").output)
    assert [s["stage"] for s in found["stages"]] == ["r0/fit", "r0/evaluate", "r0/report"]
    pipelines("run", run_file(gpu_hours=100), "--run-dir", root)
    assert hashes(root) == hashes(finished_run / "run")
    assert "stopped after" not in pipelines("status", root).output


def test_a_budget_spent_in_a_round_leaves_what_is_made(
    finished_run: Path, run_file: Callable[..., Path], copy_of: Callable[[Path], Path]
) -> None:
    root = copy_of(finished_run)
    shutil.rmtree(root / "rounds" / "002" / "fit")
    shutil.rmtree(root / "rounds" / "002" / "evaluate")
    before = hashes(root)
    assert "stopped after round 1" in pipelines("run", run_file(gpu_hours=1e-9), "--run-dir", root).output
    assert hashes(root) == before
    pipelines("gc", root, "--delete")
    assert hashes(root) == before
    pipelines("run", run_file(gpu_hours=100), "--run-dir", root)
    assert hashes(root) == hashes(finished_run / "run")


def test_gc_and_verify_know_a_stopped_run(
    finished_run: Path, run_file: Callable[..., Path], copy_of: Callable[[Path], Path]
) -> None:
    root = copy_of(finished_run)
    pipelines("run", run_file(**NEVER_RISES), "--run-dir", root)
    pages = sorted(root.glob("rounds/*/report/*/report.html"))
    assert [page.parts[-4] for page in pages] == ["001", "002"]
    assert "nothing can go" in pipelines("gc", root).output
    assert "all as committed" in pipelines("verify", root).output
    pipelines("run", run_file(), "--run-dir", root)
    pipelines("gc", root, "--delete")
    assert sorted(root.glob("rounds/*/report/*/report.html")) == pages[1:], "a page that nothing shows any more"


def test_overlap_is_that_of_the_mined_tables(finished_run: Path) -> None:
    store = LocalStore(finished_run / "run")
    settings = loop.saved_settings(store)
    data = loop.saved_data(store)
    assert data is not None
    steps = loop.steps_of(settings, data, store)
    shares = []
    for direction in ("i2t", "t2i"):
        frames = [
            pd.read_parquet(next((store.root / f"rounds/{round:03d}/mine-{direction}").glob("*/negatives.parquet")))
            for round in (1, 2)
        ]
        before, after = (set(zip(frame.anchor_id, frame.negative_id, strict=True)) for frame in frames)
        shares.append(len(before & after) / len(after))
    assert abs(shares[0] - shares[1]) > 1e-3
    least = min(shares)
    more = replace(settings, run=settings.run.model_copy(update={"rounds": 5}))

    def stop(overlap: float) -> Stop | None:
        return stop_of(replace(more, stop=StopConfig(overlap=overlap)), steps, store)

    found = stop(least)
    assert found is not None
    assert (found.round, found.rule) == (2, "overlap")
    assert f"at least {100 * least:.1f}% of their negatives with round 1's" in found.why
    assert stop(least + 1e-9) is None
    assert len(dev_rsums(steps)) == 3


def test_a_damaged_table_is_not_compared(finished_run: Path, copy_of: Callable[[Path], Path]) -> None:
    store = LocalStore(copy_of(finished_run))
    settings, data = loop.saved_settings(store), loop.saved_data(store)
    assert data is not None
    steps = loop.steps_of(settings, data, store)
    table = next((store.root / "rounds/001/mine-t2i").glob("*/negatives.parquet"))
    table.write_bytes(table.read_bytes()[:-9] + b"000000000")
    more = replace(settings, run=settings.run.model_copy(update={"rounds": 5}), stop=StopConfig(overlap=0.9))
    with pytest.raises(DamagedArtifact, match="mine-t2i"):
        stop_of(more, steps, store)
