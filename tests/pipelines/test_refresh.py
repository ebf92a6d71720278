"""Training that does not wait for mining: what is made from what, when a stage may begin, and the same bytes anyhow."""

from __future__ import annotations

import io
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, FileRecord, Manifest, input_key
from miner.artifacts.store import LocalStore
from pipelines import loop
from pipelines.executors.inline import InlineExecutor
from pipelines.jobs import Task
from pipelines.plan import KEY_DIGITS, Step, plan, ready, trained_on
from pipelines.progress import Lines, Progress
from pipelines.settings import Settings
from pipelines.stages import Data, declare
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_loop import hashes, pipelines

DATA = Data({"train": "a", "dev": "b", "test": "c"}, 84, 206, 210)
Present = dict[str, dict[str, Manifest]]


def later(folder: Path, rounds: int = 3, **sections: dict[str, Any]) -> dict[str, Any]:
    run = {"rounds": rounds, "refresh": "async", "first_epochs": 1, "epochs": 1}
    return raw_settings(folder, **{**sections, "run": {**run, **sections.get("run", {})}})


def commit(step: Step, present: Present) -> None:
    assert step.inputs is not None
    meta = {"metrics": {"dev": {"rsum": float(step.stage.round)}}} if step.stage.work == "evaluate" else {}
    manifest = Manifest(step.stage.kind, dict(step.inputs), {"f": FileRecord(1, 1, step.stage.name)}, meta)
    key = input_key(step.stage.kind, step.inputs)
    present.setdefault(step.stage.folder, {})[key[:KEY_DIGITS]] = manifest


def test_a_round_trains_on_the_tables_of_the_round_before(folder: Path) -> None:
    stages = {stage.name: stage for stage in declare(Settings.parse(later(folder, 4), "t"), DATA)}
    tables = {round: dict(stages[f"r{round}/fit"].parents)["i2t"] for round in (1, 2, 3, 4)}
    assert tables == {1: "r1/mine-i2t", 2: "r1/mine-i2t", 3: "r2/mine-i2t", 4: "r3/mine-i2t"}
    assert {dict(stages[f"r{round}/fit"].parents)["start"] for round in (1, 2, 3, 4)} == {
        f"r{round}/fit" for round in (0, 1, 2, 3)
    }
    for round in (1, 2, 3):
        assert dict(stages[f"r{round}/encode-text"].parents) == {"checkpoint": f"r{round - 1}/fit"}
    # Nobody would train on what the last round mined.
    assert not [name for name in stages if name.startswith("r4/") and stages[name].branch == "refresh"]
    # Of a run that a rule ends after round 2, the same.
    assert not [s for s in declare(Settings.parse(later(folder, 4), "t"), DATA, 2) if s.name == "r2/mine-i2t"]


def test_waiting_runs_keep_their_keys(settings: Settings, folder: Path) -> None:
    raw = raw_settings(folder)
    said = Settings.parse({**raw, "run": {**raw["run"], "refresh": "sync"}}, "t")
    assert said.dump() == settings.dump()
    assert "refresh" not in settings.dump()["run"]
    one, other = ([s.inputs({}) for s in declare(each, DATA)] for each in (settings, said))
    assert one == other
    changed = Settings.parse(later(folder), "t")
    assert Settings.parse(changed.dump(), "t").run.refresh == "async"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"run": {"rounds": 1}}, "rounds = 1; set it to 2"),
        ({"run": {"rounds": 2, "restart": True}}, "leave one of them out"),
        ({"loss": {"name": "triplet"}}, "this loss mines none"),
        ({"run": {"refresh": "later"}}, "refresh"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, sections: dict[str, dict[str, Any]], words: str) -> None:
    raw = later(folder, **sections)
    if "loss" in sections:
        raw["loss"] = sections["loss"]
    with pytest.raises(BadInput, match=words):
        Settings.parse(raw, "run.toml")


def test_two_branches_at_a_time_and_no_round_before_its_turn(folder: Path) -> None:
    """Whatever ends first: both orders, stage by stage."""
    stages = declare(Settings.parse(later(folder, 4), "t"), DATA)
    for refresh_first in (True, False):
        present, at_work, together = Present(), list[Step](), set[tuple[str, ...]]()
        for _ in range(4 * len(stages)):
            steps = plan(stages, present)
            begin = ready(steps, at_work, 2)
            assert all(step.state in ("missing", "stale") for step in begin)
            at_work += begin
            assert len({step.stage.branch for step in at_work}) == len(at_work) <= 2
            assert not ready(steps, at_work, 2)
            if not at_work:
                break
            together.add(tuple(sorted(step.stage.name for step in at_work)))
            evaluated = [s.stage.round for s in steps if s.stage.work == "evaluate" and s.state == "done"]
            assert all(step.stage.round - 1 in [-1, *evaluated] for step in at_work)
            at_work.sort(key=lambda step: (step.stage.branch == "refresh") != refresh_first)
            commit(at_work.pop(0), present)
        assert {step.state for step in plan(stages, present)} == {"done"}
        for round in (2, 3):
            assert any(f"r{round}/fit" in names and len(names) == 2 for names in together)
        assert not any("r1/fit" in names and len(names) == 2 for names in together)


def test_one_branch_takes_the_plans_order(settings: Settings, folder: Path) -> None:
    for each in (settings, Settings.parse(later(folder), "t")):
        stages, present = declare(each, DATA), Present()
        for stage in stages:
            steps = plan(stages, present)
            (step,) = ready(steps, [], 1)
            assert step.stage == stage
            assert not ready(steps, [step], 1)
            commit(step, present)
        assert not ready(plan(stages, present), [], 1)


def test_tables_are_found_by_what_a_model_was_trained_on(folder: Path) -> None:
    stages, present = declare(Settings.parse(later(folder), "t"), DATA), Present()
    for _ in stages:
        commit(ready(plan(stages, present), [], 1)[0], present)
    done = {step.stage.name: step for step in plan(stages, present)}
    names = {r: {d: step.stage.name for d, step in trained_on(done, r).items()} for r in range(4)}
    assert names[0] == {}
    assert names[3] == {"i2t": "r2/mine-i2t", "t2i": "r2/mine-t2i"}
    assert names[2] == names[1] == {"i2t": "r1/mine-i2t", "t2i": "r1/mine-t2i"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with `run.toml` and the finished run `run`, of this process."""
    base = tmp_path_factory.mktemp("later")
    raw = later(folder, analyze={"rounds": "all", "batches": 1}, watch={"trackers": ["json_lines"]})
    result = pipelines("run", write_toml(base / "run.toml", raw), "--run-dir", base / "run")
    assert result.exit_code == 0, result.output
    return base


def test_age_and_overlap_of_tables_are_told(finished: Path) -> None:
    root = finished / "run"
    found = json.loads(pipelines("status", root, "--json").output)["rounds"]
    log = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    steps = {line["stage"]: line["steps"] for line in log if line["event"] == "epoch"}
    assert [each["stale_steps"] for each in found] == [None, 0, steps["r1/fit"], steps["r2/fit"]]
    assert [set(each["overlap"]) for each in found] == [set(), set(), set(), {"i2t", "t2i"}]
    assert found[2]["hardness"] == found[1]["hardness"]
    begun = {line["stage"]: line.get("figures") for line in log if line["event"] == "start"}
    assert begun["r3/fit"] == {
        "tables/stale_steps": steps["r2/fit"],
        **{f"tables/overlap_{d}": share for d, share in found[3]["overlap"].items()},
    }
    assert begun["r1/fit"] == {"tables/stale_steps": 0}
    assert begun["r2/mine-i2t"] is None
    told = [json.loads(line) for line in (root / "watch" / "events.jsonl").read_text().splitlines()]
    done = {line["round"]: line["figures"] for line in told if line["event"] == "round_done"}
    assert done[3].items() >= begun["r3/fit"].items()
    shown = pipelines("status", root).output
    assert "tables' age" in shown
    assert f"{steps['r2/fit']} steps" in shown
    assert "steps old" in (root / "report.html").read_text()


def test_what_looks_at_a_finished_run_finds_its_tables(finished: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from trainer.cli import main as trainer

    root = finished / "run"
    assert "0 to run" in pipelines("plan", finished / "run.toml", "--run-dir", root).output
    result = pipelines("verify", root)
    assert result.exit_code == 0, result.output
    assert "nothing can go" in pipelines("gc", root).output
    data = json.loads((root / "settings.json").read_text())["data"]["folder"]
    look = ["analyze", "--data", f"vectors:folder={data}", "--run", root, "--loss", "triplet", "--batches", 1]
    analysed = CliRunner().invoke(trainer, [str(each) for each in (*look, "--out", tmp_path / "counts")])
    assert analysed.exit_code == 0, analysed.output
    assert "round 3" in analysed.output


class Two(InlineExecutor):
    """Both branches in threads of this process; `before` a stage something may happen."""

    branches = 2

    def __init__(self, **before: Callable[[], object]) -> None:
        self.before = before

    def execute(self, task: Task, progress: Progress) -> Artifact:
        self.before.get(task.stage.name.replace("/", "_").replace("-", "_"), lambda: None)()
        return super().execute(task, progress)


def run_two(executor: Two, finished: Path, root: Path, said: io.StringIO | None = None) -> None:
    """The same run once more, in `root`, which holds all but round 2 of it; of what follows the bytes are the same."""
    if not root.exists():
        shutil.copytree(finished / "run", root)
        shutil.rmtree(root / "rounds" / "002")
    settings, store = Settings.load(finished / "run.toml"), LocalStore(root)
    data = loop.describe(settings)
    loop.run(settings, data, store, executor, Lines(said or io.StringIO()))


def test_branches_meet_and_give_the_bytes_of_one_after_the_other(finished: Path, tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=60)  # broken, which is an error, if one would have to end before the other
    run_two(Two(r2_fit=meet.wait, r2_mine_t2i=meet.wait), finished, tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(finished / "run")


@pytest.mark.parametrize(("fails", "goes_on", "never"), [
    ("r2/fit", "r2/encode-image", "r2/encode-text"), ("r2/encode-image", "r2/fit", "r2/evaluate"),
])  # fmt: skip
def test_what_fails_in_one_branch_costs_the_other_nothing(
    finished: Path, tmp_path: Path, fails: str, goes_on: str, never: str
) -> None:
    root, said, begun = tmp_path / "run", io.StringIO(), threading.Event()

    def fail() -> None:
        assert begun.wait(60)
        raise BadInput("nobody can do this.")

    def hold() -> None:
        begun.set()
        for _ in range(6000):
            if f"The run ends once {goes_on}" in said.getvalue():
                return
            time.sleep(0.01)
        raise AssertionError("nobody said that the other failed")

    named = {name.replace("/", "_").replace("-", "_"): what for name, what in ((fails, fail), (goes_on, hold))}
    with pytest.raises(BadInput, match="nobody can do this"):
        run_two(Two(**named), finished, root, said)
    assert f"{fails} failed: nobody can do this." in said.getvalue()

    def there(name: str) -> list[Path]:
        return list(root.glob(f"rounds/002/{name.removeprefix('r2/')}/*/manifest.json"))

    assert (bool(there(goes_on)), there(fails), there(never)) == (True, [], [])
    run_two(Two(), finished, root)
    assert hashes(root) == hashes(finished / "run")


def test_an_interrupt_waits_for_nobody_who_was_given_up(
    finished: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What a look at the store raises in the loop's own thread ends the branches, as Ctrl-C does."""
    # Whoever starts the tests in the background of a shell has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    given_up = threading.Event()

    class Ends(Two):
        def give_up(self) -> None:
            given_up.set()

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    executor = Ends(r2_fit=lambda: given_up.wait(60), r2_index_image=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_two(executor, finished, tmp_path / "run")
    assert given_up.is_set()
    run_two(Two(), finished, tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(finished / "run")


def test_overlap_of_what_is_trained_on_ends_a_run(folder: Path, tmp_path: Path) -> None:
    """Round 2 has round 1's tables once more, which says nothing; round 3's are the first to compare."""
    raw = later(folder, 4, stop={"overlap": 0.5}, fit={"lr": 1e-6})
    run_file = write_toml(tmp_path / "run.toml", raw)
    result = pipelines("run", run_file, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "stopped after round 3: its tables share at least" in result.output
    assert not list((tmp_path / "run").glob("rounds/004/fit"))
    assert "0 to run" in pipelines("run", run_file, "--run-dir", tmp_path / "run").output
