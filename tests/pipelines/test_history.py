"""`history.json` in a checkpoint: what every epoch of a fit was like, the same whenever and wherever trained."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Draft
from miner.artifacts.store import LocalStore
from pipelines import loop
from pipelines.executors.inline import InlineExecutor
from pipelines.plan import Step
from pipelines.progress import Lines
from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings
from tests.pipelines.test_loop import hashes
from trainer import losses, models
from trainer.checkpoint import Checkpoint
from trainer.data import load
from trainer.training import EpochLog, FitConfig, fit

FLEETING = {"seconds", "waited", "pairs_per_second", "device", "resumed"}
HISTORY = "history.json"


class Told(Lines):
    """Remembers every epoch, and dies after one if asked to."""

    def __init__(self, dies_after: int | None = None) -> None:
        super().__init__()
        self.dies_after = dies_after
        self.lines: list[dict[str, Any]] = []

    def epoch(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if line["epoch"] == self.dies_after and not line["resumed"]:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings.parse(raw_settings(folder, run={"rounds": 1, "first_epochs": 3, "epochs": 2}), "test")


def run(settings: Settings, root: Path, told: Told) -> dict[str, Step]:
    data, store = loop.describe(settings), LocalStore(root)
    loop.prepare(settings, data, store)
    return {s.stage.name: s for s in loop.run(settings, data, store, InlineExecutor(), told)}


def history(root: Path, step: Step) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / step.prefix / HISTORY).read_bytes())["epochs"]
    return found


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Step], Told]:
    root, told = tmp_path_factory.mktemp("history") / "run", Told()
    return root, run(settings, root, told), told


def test_a_line_per_epoch_of_what_was_seen(finished: tuple[Path, dict[str, Step], Told]) -> None:
    root, steps, told = finished
    found = history(root, steps["r0/fit"]) + history(root, steps["r1/fit"])
    assert [len(history(root, steps[name])) for name in ("r0/fit", "r1/fit")] == [3, 2]
    assert [line["epoch"] for line in found] == [0, 1, 2, 3, 4]
    names = {field.name for field in fields(EpochLog)}
    for line, said in zip(found, told.lines, strict=True):
        assert set(line) == names - FLEETING
        assert line == {name: said[name] for name in line}
        assert line["loss"] == pytest.approx(sum(line["parts"].values()))
        assert (line["steps"], line["pairs"]) == (6, 192)
    assert [line["warm_up"] for line in found] == [True, False, False, False, False]
    assert {"offline_text", "partners"} <= set(found[3]["parts"])
    assert [line["offline_hardness"] is None for line in found] == [True, True, True, False, False]


def test_it_is_a_file_of_the_checkpoint(finished: tuple[Path, dict[str, Step], Told], tmp_path: Path) -> None:
    root, steps, _ = finished
    manifest = steps["r1/fit"].manifest
    assert manifest is not None
    assert HISTORY in manifest.files
    checkpoint = Checkpoint.load(root / steps["r1/fit"].prefix)
    assert checkpoint.updates == 30
    draft = Draft(LocalStore(tmp_path / "bare"), ".", "checkpoint", {})
    checkpoint.commit(draft)
    assert json.loads((tmp_path / "bare" / HISTORY).read_bytes()) == {"epochs": []}
    changed = checkpoint.commit(Draft(LocalStore(tmp_path / "told"), ".", "checkpoint", {}), [{"epoch": 1}])
    (tmp_path / "told" / HISTORY).write_text("{}")
    with pytest.raises(DamagedArtifact):
        changed.read(HISTORY)


def test_no_time_and_no_machine_in_it(finished: tuple[Path, dict[str, Step], Told], tmp_path: Path) -> None:
    root, steps, told = finished
    text = (root / steps["r0/fit"].prefix / HISTORY).read_text()
    for word in (*FLEETING, "time", "host", "thread", "cpu", str(root)):
        assert not re.search(rf"\b{re.escape(word)}", text), word
    # They are told beside it.
    assert all(line["seconds"] > 0 and line["pairs_per_second"] > 0 and line["device"] for line in told.lines)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_fit_that_was_interrupted_has_the_same_bytes(
    settings: Settings, finished: tuple[Path, dict[str, Step], Told], tmp_path: Path, epoch: int
) -> None:
    whole, steps, _ = finished
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", Told(dies_after=epoch))
    told = Told()
    again = run(settings, tmp_path / "run", told)
    first = 0 if epoch < 3 else 3
    assert [(line["epoch"], line["resumed"]) for line in told.lines] == [(e, e <= epoch) for e in range(first, 5)]
    for name in ("r0/fit", "r1/fit"):
        assert again[name].prefix == steps[name].prefix
        here, there = (root / steps[name].prefix / HISTORY for root in (tmp_path / "run", whole))
        assert here.read_bytes() == there.read_bytes()
    assert hashes(tmp_path / "run") == hashes(whole)


@pytest.mark.parametrize(("loss", "steps"), [("triplet", 4), ("smoothap", 4), ("smoothap", 7)])
def test_the_steps_of_an_epoch(folder: Path, settings: Settings, loss: str, steps: int) -> None:
    logs: list[EpochLog] = []
    config = FitConfig(epochs=2, steps_per_epoch=steps, batch_size=32, threads=1)
    model = models.configure("vsepp", {"dim": 16, "word_dim": 8})
    trained = fit(load(settings.data, "train"), model, losses.configure(loss), config, progress=logs.append)
    assert [log.steps for log in logs] == [steps, steps]
    assert trained.updates == 2 * steps
    if loss == "triplet":
        assert [log.pairs for log in logs] == [32 * steps] * 2
    else:
        assert all(log.pairs > 32 * steps for log in logs), "an image brings all its pairs"


def test_its_lines_are_json_that_reads_back(finished: tuple[Path, dict[str, Step], Told]) -> None:
    root, steps, told = finished
    log = EpochLog(**{k: v for k, v in told.lines[0].items() if k != "epoch_in_round"})
    assert json.loads(json.dumps(log.history(), allow_nan=False)) == history(root, steps["r0/fit"])[0]
    assert "NaN" not in (root / steps["r1/fit"].prefix / HISTORY).read_text()
