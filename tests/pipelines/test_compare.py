"""Real comparisons of four objectives on a small set: they run once, share, grow, go on after a kill or an error, and
give the same bytes on a Ray cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.lock import hold
from miner.artifacts.manifest import Artifact, Manifest
from miner.artifacts.store import LocalStore
from pipelines import executors, loop
from pipelines.compare.comparison import Comparison
from pipelines.compare.schedule import Plans
from pipelines.executors.inline import InlineExecutor
from pipelines.jobs import Task
from pipelines.plan import Step
from pipelines.progress import Progress
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.test_loop import hashes
from tests.pipelines.test_ray import finish, kill
from trainer.cli import main

OBJECTIVES: list[dict[str, Any]] = [
    {"name": "triplet"},
    {"name": "aoq", "label": "AOQ", "h_t": 5, "h_v": 5},
    {"name": "ntxent", "label": "NT-Xent off", "offline": "softmax", "h_t": 5, "h_v": 5},
    {"name": "smoothap"},
]
LABELS = ["triplet", "AOQ", "NT-Xent off", "smoothap"]
# 192 pairs in batches of 32, for 2 + 1 epochs.
STEPS, UPDATES = 6, 18
ONE_ROUND = {"rounds": 1, "first_epochs": 2, "epochs": 1}


def comparison_file(path: Path, folder: Path, objectives: list[dict[str, Any]], **sections: dict[str, Any]) -> Path:
    raw = raw_settings(folder, **{"run": ONE_ROUND, **sections})
    del raw["loss"]
    write_toml(path, raw)
    for number, objective in enumerate(objectives):
        one = write_toml(path.with_name(f"objective-{number}.part"), {"objective": objective}).read_text()
        path.write_text(path.read_text() + one.replace("[objective]", "[[objective]]"))
    return path


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *(str(a) for a in arguments)])


def plans_of(file: Path, root: Path) -> Plans:
    comparison = Comparison.load(file)
    data = loop.describe(comparison.base)
    return Plans(comparison.members(data.num_pairs), data, LocalStore(root))


def by_member(plans: Plans) -> dict[tuple[str, int], dict[str, Step]]:
    pairs = zip(plans.members, plans.steps(), strict=True)
    return {(member.label, member.seed): {step.stage.name: step for step in steps} for member, steps in pairs}


def manifests(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("manifest.json")}


def logged(root: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / loop.LOG).read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    where = tmp_path_factory.mktemp("compare")
    return comparison_file(where / "four.toml", folder, OBJECTIVES, compare={"seeds": 2})


@pytest.fixture(scope="module")
def finished(file: Path) -> Path:
    """The folder of a comparison that is done."""
    root = file.parent / "finished"
    result = compare(file, "--out", root)
    assert result.exit_code == 0, result.output
    head = next(i for i, line in enumerate(result.output.splitlines()) if line.startswith("objective  "))
    assert [line.split("  ")[0] for line in result.output.splitlines()[head + 2 : head + 6]] == LABELS
    return root


def test_the_results_are_complete(finished: Path) -> None:
    frame = pd.read_csv(finished / "results.csv")
    assert list(zip(frame["seed"], frame["objective"], strict=True)) == [(s, o) for s in (3, 4) for o in LABELS]
    offline = frame["objective"].isin(["AOQ", "NT-Xent off"])
    for column in ("i2t_offline", "t2i_offline"):
        assert (frame[column].notna() == offline).all()
        assert (frame.loc[offline, column] > 0).any()
    rest = frame.drop(columns=["i2t_offline", "t2i_offline"])
    assert rest.notna().all(axis=None)
    for split in ("dev", "test"):
        recalls = [f"{split}_{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
        np.testing.assert_allclose(frame[recalls].sum(axis=1), frame[f"{split}_rsum"])
    measured = [json.loads(path.read_text()) for path in finished.glob("rounds/001/evaluate/*/metrics.json")]
    assert sorted(m["test"]["rsum"] for m in measured) == sorted(frame["test_rsum"])
    assert (frame["ms_per_step"] > 0).all()
    assert ((frame["mining_seconds"] > 0) == offline).all()
    assert set(frame["collapses"]) == {0}

    by_arrow, by_polars = pq.read_table(finished / "results.parquet"), pl.read_parquet(finished / "results.parquet")
    assert by_arrow.column_names == by_polars.columns == list(frame.columns)
    assert by_polars.equals(pl.from_arrow(by_arrow))
    pd.testing.assert_frame_equal(by_arrow.to_pandas(), frame, check_dtype=False)


def test_the_results_are_shown(finished: Path) -> None:
    text = (finished / "results.md").read_text().splitlines()
    assert text[0] == "vectors: 4 objectives x 2 seeds, 3 epochs, 18 updates each"
    lines = text[4 : text.index("", 4)]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == LABELS
    assert {line.count(" | ") for line in text[2:4] + lines} == {10}
    means = pd.read_csv(finished / "results.csv").groupby("objective")["test_rsum"].mean()
    for line in lines:
        cells = line.strip("| ").split(" | ")
        assert cells[1].startswith(f"{means[cells[0]]:.1f} ± ")
        assert (" + " in cells[8], " + " in cells[9]) == (cells[0] in ("AOQ", "NT-Xent off"),) * 2
    pixels = np.asarray(Image.open(finished / "results.png").convert("RGB"))
    for colour in ("#4477AA", "#EE6677"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).sum(2) < 12).sum() > 100, "the picture shows no point and no bar"


def test_everyone_made_the_same_updates(file: Path, finished: Path) -> None:
    frame = pd.read_csv(finished / "results.csv")
    assert set(frame["updates"]) == {UPDATES}
    histories = sorted(finished.glob("rounds/*/fit/*/history.json"))
    assert len(histories) == 6 + 8
    for path in histories:
        assert {line["steps"] for line in json.loads(path.read_text())["epochs"]} == {STEPS}
    for (_, seed), steps in by_member(plans_of(file, finished)).items():
        assert steps["r0/fit"].inputs is not None
        assert steps["r0/fit"].inputs["parameters"]["fit"]["seed"] == seed


def test_what_members_share_is_made_once(file: Path, finished: Path) -> None:
    found = by_member(plans_of(file, finished))
    assert {step.state for steps in found.values() for step in steps.values()} == {"done"}
    for seed in (3, 4):
        for stage in ("r0/fit", "r0/evaluate"):
            prefixes = {label: found[label, seed][stage].prefix for label in LABELS}
            assert prefixes["AOQ"] == prefixes["triplet"]
            assert len(set(prefixes.values())) == 3
        ends = {found[label, seed]["r1/fit"].prefix for label in LABELS}
        assert len(ends) == 4
    made = [line["prefix"] for line in logged(finished, "start")]
    assert len(made) == len(set(made)) == len(manifests(finished / "rounds"))
    assert {step.prefix for steps in found.values() for step in steps.values()} == set(made)


def test_a_second_call_runs_nothing(file: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("there is nothing to do")

    before, log = manifests(finished), (finished / loop.LOG).read_bytes()
    results = (finished / "results.csv").read_bytes()
    monkeypatch.setattr(executors, "open_executor", never)
    result = compare(file, "--out", finished)
    assert result.exit_code == 0, result.output
    assert manifests(finished) == before
    assert (finished / loop.LOG).read_bytes() == log
    assert (finished / "results.csv").read_bytes() == results


def test_an_objective_and_a_seed_more_reuse_the_rest(file: Path, finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "grown"
    shutil.copytree(finished, root)
    before, made = manifests(root), len(logged(root, "start"))
    left = root / by_member(plans_of(file, root))["triplet", 3]["r0/fit"].prefix / "epochs" / "epoch-0001.json"
    left.parent.mkdir()
    left.write_text("of a process that was killed between its commit and its cleaning up")
    more = (file, "--out", root, "--seeds", 3, "--only", "triplet", "--objective", "triplet:margin=0.3")
    shown = [line.split() for line in compare(*more, "--plan").output.splitlines()[2:8]]
    assert shown == [
        [label, str(seed), *counts]
        for seed in (3, 4, 5)
        for label, counts in (("triplet", ["5", "0"] if seed < 5 else ["0", "5"]), ("triplet:margin=0.3", ["0", "5"]))
    ]
    assert manifests(root) == before, "a plan does nothing"
    result = compare(*more)
    assert result.exit_code == 0, result.output
    assert len(logged(root, "start")) == made + 4 * 5
    assert {path: found for path, found in manifests(root).items() if path in before} == before
    assert not left.parent.exists()
    frame = pd.read_csv(root / "results.csv")
    assert frame.groupby("objective")["seed"].apply(list).to_dict() == {
        "triplet": [3, 4, 5],
        "triplet:margin=0.3": [3, 4, 5],
    }
    old = pd.read_csv(finished / "results.csv").query("objective == 'triplet'")
    assert frame.query("objective == 'triplet' and seed < 5")["test_rsum"].tolist() == old["test_rsum"].tolist()


def start(file: Path, root: Path, *options: str) -> subprocess.Popen[bytes]:
    """`trainer compare` in its own session, with a home of its own."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-m", "trainer.cli", "compare", str(file), "--out", str(root), *options]
    with open(root.parent / f"{root.name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)


def test_a_killed_comparison_then_the_same_command(
    request: pytest.FixtureRequest, file: Path, finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "killed"
    process = start(file, root)
    request.addfinalizer(lambda: kill(process))
    deadline = time.monotonic() + 120
    # One member is done, and another is between two epochs.
    while not (list(root.glob("rounds/001/evaluate/*/manifest.json")) and _between_epochs(root)):
        assert process.poll() is None, (tmp_path / "killed.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = manifests(root / "rounds")
    assert 0 < len(done) < len(manifests(finished / "rounds")) / 2
    finish(start(file, root), root)
    assert hashes(root) == hashes(finished)
    assert {path: found for path, found in manifests(root / "rounds").items() if path in done} == done
    epochs = [(line["prefix"], line["epoch"]) for line in logged(root, "epoch")]
    assert sorted(epochs) == sorted((line["prefix"], line["epoch"]) for line in logged(finished, "epoch"))
    timed = ["ms_per_step", "mining_seconds"]
    again, whole = (pd.read_csv(folder / "results.csv").drop(columns=timed) for folder in (root, finished))
    pd.testing.assert_frame_equal(again, whole)


def _between_epochs(root: Path) -> bool:
    fits = root.glob("rounds/*/fit/*/epochs/epoch-0000.json")
    return any(not (path.parents[1] / "manifest.json").exists() for path in fits)


def test_a_ray_cluster_gives_the_bytes_of_one_process(
    request: pytest.FixtureRequest, file: Path, finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ray"
    process = start(file, root, "--executor", "ray", "--workers", "2")
    request.addfinalizer(lambda: kill(process))
    finish(process, root)
    assert hashes(root) == hashes(finished)
    made = [line["prefix"] for line in logged(root, "start")]
    assert len(made) == len(set(made)), "two members at once do not make one artifact twice"


@pytest.mark.heavy
def test_members_of_several_processes_are_trained_at_once(folder: Path, tmp_path: Path) -> None:
    given = [{"name": "triplet"}, {"name": "ntxent"}]
    file = comparison_file(
        tmp_path / "c.toml",
        folder,
        given,
        compare={"seeds": 3},
        run={"rounds": 0},
        fit={"processes": 2},
        executor={"kind": "ray", "workers": 4},
    )
    root = tmp_path / "ray"
    finish(start(file, root, "--executor", "ray", "--workers", "4"), root)
    fits = {line["prefix"] for line in logged(root, "done") if line["stage"].endswith("/fit")}
    assert len(fits) == 6
    epochs = [(line["prefix"], line["epoch"]) for line in logged(root, "epoch")]
    wanted = max(epoch for _, epoch in epochs) + 1
    assert sorted(epochs) == sorted((prefix, epoch) for prefix in fits for epoch in range(wanted))


def test_a_member_that_cannot_be_trained_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    hot = {"name": "triplet", "label": "hot", "margin": 1e39}
    given = [{"name": "triplet"}, hot, {"name": "ntxent"}]
    path = comparison_file(tmp_path / "c.toml", folder, given, compare={"seeds": 2}, run={"rounds": 0})
    root = tmp_path / "out"
    result = compare(path, "--out", root)
    assert result.exit_code == 3, result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("error: 2 of 6 members cannot be trained, first hot, seed 3: r0/fit: epoch 0: ")
    assert "no longer a finite number" in last
    assert "Traceback" not in result.output
    kept = manifests(root / "rounds")
    assert sorted(path.parents[1].name for path in kept) == ["analyze"] * 4 + ["evaluate"] * 4 + ["fit"] * 4
    results = pd.read_csv(root / "results.csv")
    assert results["objective"].tolist() == ["triplet", "ntxent"] * 2
    result = compare(path, "--out", root, "--only", "triplet", "--only", "ntxent")
    assert result.exit_code == 0, result.output
    pd.testing.assert_frame_equal(pd.read_csv(root / "results.csv"), results)
    assert manifests(root / "rounds") == kept
    result = compare(path, "--out", root, "--only", "hot")
    assert (result.exit_code, "2 of 2 members" in result.output) == (3, True)
    assert "The others" not in result.output
    assert manifests(root / "rounds") == kept


def test_an_error_waits_for_what_is_at_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(InlineExecutor):
        parallel = 2

        def execute(self, task: Task, progress: Progress) -> Artifact:
            if getattr(task.settings.loss, "margin", 0) == 0.7:
                raise DamagedArtifact("somewhere: damaged.")
            time.sleep(0.5)
            return super().execute(task, progress)

    hot = {"name": "triplet", "label": "hot", "margin": 0.7}
    path = comparison_file(tmp_path / "c.toml", folder, [{"name": "sct"}, hot], compare={"seeds": 1})
    monkeypatch.setattr(executors, "open_executor", lambda *_, **__: Two())
    result = compare(path, "--out", tmp_path / "out")
    assert (result.exit_code, result.output.splitlines()[-1]) == (4, "error: hot, seed 3: r0/fit: somewhere: damaged.")
    assert len(manifests(tmp_path / "out" / "rounds")) == 1


def test_a_folder_that_is_not_ours_to_write(file: Path, finished: Path, tmp_path: Path) -> None:
    with hold(finished):
        result = compare(file, "--out", finished)
    assert (result.exit_code, "another command is writing" in result.output) == (5, True)
    before = manifests(finished)
    (tmp_path / "other").mkdir()
    other = comparison_file(tmp_path / "c.toml", write_vectors(tmp_path / "other", seed=1), OBJECTIVES)
    result = compare(other, "--out", finished)
    assert (result.exit_code, "another data set" in result.output) == (3, True)
    shutil.copytree(finished / "pairs", tmp_path / "older" / "pairs")
    path = tmp_path / "older" / "pairs" / "manifest.json"
    manifest = Manifest.loads(path.read_bytes(), "")
    del manifest.inputs["num_pairs"]
    path.write_bytes(manifest.dumps())
    result = compare(file, "--out", tmp_path / "older")
    assert (result.exit_code, "another version" in result.output) == (3, True)
    assert manifests(finished) == before
