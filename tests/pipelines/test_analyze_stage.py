"""The stage `analyze`: counts of contributing negatives as an artifact of a round, when a run file asks for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import trainer.analyze
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import PAIRS, Direction, open_pairs
from miner.artifacts.store import LocalStore
from pipelines import loop
from pipelines.executors.inline import InlineExecutor
from pipelines.jobs import artifact_at
from pipelines.plan import Step
from pipelines.progress import Lines
from pipelines.settings import Settings
from pipelines.stages import Data, declare
from pipelines.summary import round_views
from pipelines.tables import summary_table
from tests.pipelines.builders import raw_settings
from trainer.checkpoint import Checkpoint
from trainer.data import load

DATA = Data({"train": "a", "dev": "b", "test": "c"}, 84, 182, 192)
ONE_ROUND = {"rounds": 1, "first_epochs": 1, "epochs": 1}
Steps = dict[str, Step]


def settings_with(folder: Path, loss: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Settings:
    raw = raw_settings(folder, **{"run": ONE_ROUND, **sections})
    if loss is not None:
        raw["loss"] = loss
    return Settings.parse(raw, "test")


def run(settings: Settings, root: Path) -> Steps:
    data, store = loop.describe(settings), LocalStore(root)
    loop.prepare(settings, data, store)
    found = loop.run(settings, data, store, InlineExecutor(), Lines())
    return {step.stage.name: step for step in found}


def artifact(root: Path, step: Step) -> Artifact:
    assert step.manifest is not None
    return Artifact(LocalStore(root), step.prefix, step.manifest)


def counts(root: Path, step: Step) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(artifact(root, step).read("counts.json"))["rows"]
    return found


def by_hand(settings: Settings, root: Path, steps: Steps, round: int, **how: Any) -> list[dict[str, Any]]:
    """`trainer.analyze.analyze` on what lies in the run folder."""
    dataset = load(settings.data, "train")
    tables = {}
    for direction in get_args(Direction):
        if f"r{round}/mine-{direction}" in steps:
            tables[direction] = NegativeTable.open(artifact(root, steps[f"r{round}/mine-{direction}"]), dataset.pairs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = trainer.analyze.analyze(
        dataset,
        Checkpoint.open(artifact(root, steps[f"r{round}/fit"])),
        settings.loss if tables else settings.loss.online,
        tables=tables or None,
        seed=settings.run.seed,
        **how,
    )
    torch.set_num_threads(before)
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Settings, Path, Steps]:
    """An AOQ run of one round with every round counted in batches of 32."""
    settings = settings_with(folder, analyze={"rounds": "all", "batch_size": 32})
    root = tmp_path_factory.mktemp("counted") / "run"
    return settings, root, run(settings, root)


def test_the_closing_table_shows_what_was_counted(counted: tuple[Settings, Path, Steps]) -> None:
    _, root, steps = counted
    store = LocalStore(root)
    views = round_views(list(steps.values()), store, open_pairs(artifact_at(store, PAIRS)))
    scores, shown, seconds = (table.splitlines() for table in summary_table(views).split("\n\n"))
    assert scores[0].split()[:3] == ["round", "dev", "rsum"]
    assert seconds[0].split()[-2:] == ["evaluate", "s"]
    assert max(len(line) for line in (*scores, *shown, *seconds)) <= 80
    assert "contributing i2t" in shown[0]
    for view, line in zip(views, shown[2:], strict=True):
        for direction in ("i2t", "t2i"):
            online = f"{view.contributing[f'{direction}_online']:.2f}"
            offline = f" + {view.contributing[f'{direction}_offline']:.2f}" if view.round else ""
            assert f"{online}{offline}" in line
    bare = [replace(view, contributing={}) for view in views]
    assert "contributing" not in summary_table(bare)


def test_nothing_is_counted_unless_asked_for(settings: Settings) -> None:
    assert settings.analyze.rounds == "none"
    assert all(stage.work != "analyze" for stage in declare(settings, DATA))


@pytest.mark.parametrize(("rounds", "expected"), [("last", [2]), ("all", [0, 1, 2])])
def test_rounds_that_are_counted(folder: Path, rounds: str, expected: list[int]) -> None:
    settings = settings_with(folder, run={"rounds": 2}, analyze={"rounds": rounds, "batches": 3})
    stages = {stage.name: stage for stage in declare(settings, DATA)}
    found = [stage for stage in stages.values() if stage.work == "analyze"]
    assert [stage.round for stage in found] == expected
    assert {stage.kind for stage in found} == {"counts"}
    for stage in found:
        r = stage.round
        tables = {"i2t": f"r{r}/mine-i2t", "t2i": f"r{r}/mine-t2i"} if r else {}
        assert dict(stage.parents) == {"checkpoint": f"r{r}/fit", **tables}
        assert stage.parameters["loss"] == stages[f"r{r}/fit"].parameters["loss"]
        assert stage.parameters["loss"]["name"] == ("aoq" if r else "triplet")
        assert (stage.parameters["batch_size"], stage.parameters["batches"]) == (32, 3), "as large as a fit's"
    assert stages["r2/report"].parents == tuple(
        (s.name, s.name) for s in stages.values() if s.work in ("mine", "evaluate")
    )


def test_a_loss_without_tables_is_counted_without(folder: Path) -> None:
    settings = settings_with(folder, {"name": "sct"}, analyze={"rounds": "all", "batch_size": 20})
    found = [stage for stage in declare(settings, DATA) if stage.work == "analyze"]
    assert [stage.parents for stage in found] == [(("checkpoint", f"r{r}/fit"),) for r in (0, 1)]
    assert {stage.parameters["batch_size"] for stage in found} == {20}


@pytest.mark.parametrize(
    ("wrong", "words"), [({"round": "all"}, "'rounds'"), ({"rounds": "first"}, "first"), ({"batch_size": 1}, "= 1")]
)
def test_a_wrong_section_is_refused(folder: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=r"\[analyze\]") as caught:
        settings_with(folder, analyze=wrong)
    assert words in str(caught.value)


@pytest.mark.parametrize("round", [0, 1])
def test_the_counts_are_those_of_analyze(counted: tuple[Settings, Path, Steps], round: int) -> None:
    settings, root, steps = counted
    rows = counts(root, steps[f"r{round}/analyze"])
    assert rows == by_hand(settings, root, steps, round, batch_size=32)
    kinds = {(row["direction"], row["negatives"]) for row in rows}
    online = {("i2t", "online"), ("t2i", "online")}
    offline = {("i2t", "offline"), ("t2i", "offline"), ("both", "c_1"), ("both", "c_2")}
    assert kinds == (online | offline if round else online)
    assert {row["batches"] for row in rows} == {192 // 32}
    assert any(row["count"] > 0 for row in rows)
    nulls = {key for row in rows for key, value in row.items() if value is None}
    assert nulls == ({"of_chance", "positive", "positive_std"} if round else {"of_chance"})


@pytest.mark.parametrize("loss", ["ntxent", "smoothap"])
def test_a_set_smaller_than_a_batch_is_one_batch(folder: Path, tmp_path: Path, loss: str) -> None:
    settings = settings_with(
        folder, {"name": loss}, run={"rounds": 0}, analyze={"rounds": "last", "batch_size": 128, "batches": 1}
    )
    steps = run(settings, tmp_path / "run")
    rows = counts(tmp_path / "run", steps["r0/analyze"])
    assert rows == by_hand(settings, tmp_path / "run", steps, 0, batch_size=84, max_batches=1)
    # 84 pairs, or 84 images whose texts are queries in the other direction.
    texts = {row["queries"] for row in rows if row["direction"] == "t2i"}
    assert {row["queries"] for row in rows if row["direction"] == "i2t"} == {84}
    assert texts == ({84} if loss == "ntxent" else {182})


def test_asking_later_counts_and_trains_nothing(folder: Path, tmp_path: Path) -> None:
    settings = settings_with(folder, {"name": "sct"})
    before = run(settings, tmp_path / "run")
    asked = settings_with(folder, {"name": "sct"}, analyze={"rounds": "last", "batch_size": 40})
    after = run(asked, tmp_path / "run")
    new = {step.prefix for step in after.values()} - {step.prefix for step in before.values()}
    assert new == {after["r1/analyze"].prefix, after["r1/report"].prefix}


def test_bits_do_not_depend_on_the_threads_of_a_process(
    counted: tuple[Settings, Path, Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whole = trainer.analyze.analyze

    def analyze(*args: Any, **settings: Any) -> Any:
        seen.append(torch.get_num_threads())
        return whole(*args, **settings)

    monkeypatch.setattr(trainer.analyze, "analyze", analyze)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings, _, steps = counted
        again = run(settings, tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]
    for name in ("r0/analyze", "r1/analyze"):
        assert again[name].manifest == steps[name].manifest


class Dies(Lines):
    """Ends the process, as far as one test can, after an epoch."""

    def epoch(self, line: dict[str, Any]) -> None:
        if line["epoch"] == 2 and not line["resumed"]:
            raise KeyboardInterrupt


def epoch_lines(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / loop.LOG).read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def test_the_log_has_a_line_per_epoch(counted: tuple[Settings, Path, Steps]) -> None:
    _, root, steps = counted
    found = epoch_lines(root)
    assert [(line["stage"], line["epoch"]) for line in found] == [("r0/fit", 0), ("r1/fit", 1)]
    for line in found:
        assert line["prefix"] == steps[line["stage"]].prefix
        assert line["steps"] == 192 // 32
        assert 0 < line["seconds"] < 600
        assert line["pairs_per_second"] == pytest.approx(6 * 32 / line["seconds"])


@pytest.mark.parametrize("lost", ["", "line", "half a line"])
def test_epochs_that_were_done_before_a_kill_are_logged_once(folder: Path, tmp_path: Path, lost: str) -> None:
    settings = settings_with(folder, {"name": "sct"}, run={"rounds": 0, "first_epochs": 4})
    data, store = loop.describe(settings), LocalStore(tmp_path)
    loop.prepare(settings, data, store)
    with pytest.raises(KeyboardInterrupt):
        loop.run(settings, data, store, InlineExecutor(), Dies())
    log = tmp_path / loop.LOG
    before = log.read_text().splitlines(keepends=True)
    assert [json.loads(line)["event"] for line in before] == ["start", "epoch", "epoch", "epoch"]
    if lost:  # the process died between an epoch's file and its line in the log
        log.write_text("".join(before[:-1]) + ("" if lost == "line" else before[-1][:30] + "\n"))
    loop.run(settings, data, store, InlineExecutor(), Lines())
    found = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    epochs = [line for line in found if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    assert all(line["steps"] == 6 and line["seconds"] > 0 for line in epochs)
    assert epochs[:2] == [json.loads(line) for line in before[1:3]]
