"""What a run left in an object store, taken by the other commands as from a folder."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from miner import cli as miner_cli
from miner.artifacts.errors import AnotherWriter
from miner.artifacts.lease import hold_lease
from miner.artifacts.locations import open_store
from miner.artifacts.manifest import open_artifact
from miner.artifacts.place import Place
from pipelines import cli as pipelines_cli
from tests.miner.artifacts.conftest import moto as moto
from tests.pipelines.builders import raw_settings, write_toml
from tests.pipelines.test_compare import OBJECTIVES, comparison_file
from tests.pipelines.test_loop import hashes
from tests.pipelines.test_rescore import base as base
from trainer import cli as trainer_cli
from trainer.checkpoint import CHECKPOINT

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'quintain[cloud]'")
from tests.pipelines import buckets

New = Callable[[], str]


def say(main: object, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])  # type: ignore[arg-type]
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def new(moto: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[New]:
    """Makes a location in a bucket of its own."""
    with buckets.places(moto, tmp_path_factory.mktemp("copies"), "team/run") as made:
        yield made


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, folder: Path, new: New) -> tuple[Path, str]:
    """The same run in a folder and in a bucket."""
    base, location = tmp_path_factory.mktemp("both"), new()
    run = write_toml(base / "run.toml", raw_settings(folder, run={"first_epochs": 1, "epochs": 1}))
    for place in (base / "run", location):
        say(pipelines_cli.main, "run", run, "--run-dir", place)
    return base / "run", location


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; there are some."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found
    return found


def table_of(run: Path, round: int, direction: str) -> str:
    (manifest,) = run.glob(f"rounds/{round:03d}/mine-{direction}/*/manifest.json")
    return str(manifest.parent.relative_to(run))


def test_the_best_checkpoint_is_evaluated_and_trained_from(
    both: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    data = f"vectors:folder={folder}"
    shown = [say(trainer_cli.main, "evaluate", "--data", data, "--checkpoint", f"{run}/best") for run in both]
    assert shown[0] == shown[1]
    rows = [
        say(trainer_cli.main, "evaluate", "--data", data, "--checkpoint", f"{run}/best", "--latex").splitlines()[-1]
        for run in both
    ]
    assert rows[0] == rows[1]
    assert rows[0].startswith("best & ")
    for number, run in enumerate(both):
        out = tmp_path / str(number)
        say(trainer_cli.main, "fit", "--data", data, "--start", f"{run}/best", "--epochs", 1, "--out", out)
        say(trainer_cli.main, "encode", "--data", data, "--checkpoint", f"{run}/best", "--out", out / "vectors")
    assert files_in(tmp_path / "0") == files_in(tmp_path / "1")


def test_rounds_are_analyzed(both: tuple[Path, str], folder: Path) -> None:
    arguments = ["analyze", "--data", f"vectors:folder={folder}", "--batch-size", 32, "--loss", "aoq:h_t=5,h_v=5"]
    shown = [say(trainer_cli.main, *arguments, "--run", run) for run in both]
    assert shown[0] == shown[1]
    assert "round 2" in shown[0]


def test_tables_are_compared_checked_exported_and_trained_on(
    both: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    local, location = both
    said = [say(miner_cli.main, "diff", f"{run}/rounds/001", f"{run}/rounds/002") for run in both]
    assert said[0] == said[1]
    assert say(miner_cli.main, "diff", f"{local}/rounds/001", f"{location}/rounds/001").count("same table") == 2
    mined = table_of(local, 2, "t2i")
    checked = [say(miner_cli.main, "check", f"{run}/{mined}", "--pairs", f"{run}/pairs") for run in both]
    assert checked[0].replace(str(local), location) == checked[1]
    shown = say(miner_cli.main, "check", f"{location}/{mined}", "--pairs", f"{location}/pairs.csv", code=3)
    assert f"{location}/pairs.csv: of a store, only the folder pairs/ of a run is read" in shown
    for number, run in enumerate(both):
        out = ["--format", "jsonl", "--out", tmp_path / f"{number}.jsonl"]
        say(miner_cli.main, "export", f"{run}/{mined}", "--pairs", f"{run}/pairs", *out)
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes() != b""

    # As `miner mine --out` writes them, carried into the bucket.
    for direction in ("i2t", "t2i"):
        shutil.copytree(local / table_of(local, 2, direction), tmp_path / "tables" / direction)
    store = open_store(location)
    for path in tmp_path.glob("tables/*/*"):
        store.write(str(path.relative_to(tmp_path)), path.read_bytes())
    quintuplet = ["fit", "--data", f"vectors:folder={folder}", "--quintuplet", "--epochs", 1]
    say(trainer_cli.main, *quintuplet, "--negatives", tmp_path / "tables", "--out", tmp_path / "local")
    say(trainer_cli.main, *quintuplet, "--negatives", f"{location}/tables", "--out", tmp_path / "remote")
    assert files_in(tmp_path / "local") == files_in(tmp_path / "remote")


def test_candidates_are_ranked_again(base: Path, new: New, tmp_path: Path) -> None:
    location = new()
    store = open_store(location)
    for name in ("scan", "vectors", "candidates"):
        for path, data in files_in(base / name).items():
            store.write(f"{name}/{path}", data)
    given = ["rescore", "--data", base / "data", "--k", 6, "--recall-sample", 20]
    shown = [
        say(
            trainer_cli.main, *given, "--checkpoint", f"{place}/scan", "--vectors", f"{place}/vectors",
            "--candidates", f"{place}/candidates", "--out", tmp_path / str(number),
        )
        for number, place in enumerate((base, location))
    ]  # fmt: skip
    assert shown[0].replace(str(tmp_path / "0"), str(tmp_path / "1")) == shown[1]
    assert files_in(tmp_path / "0") == files_in(tmp_path / "1")


def test_what_is_not_there_is_said_with_the_place(both: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    _, location = both
    data = ["--data", f"vectors:folder={folder}"]
    cases = [
        (trainer_cli.main, ["evaluate", *data, "--checkpoint", f"{location}/bset"], f"{location}/bset: no checkpoint"),
        (trainer_cli.main, ["evaluate", *data, "--checkpoint", f"{location}/pairs"], f"{location}/pairs: this is a"),
        (trainer_cli.main, ["evaluate", *data, "--checkpoint", "ftp://x/best"], "ftp:// is no place for artifacts"),
        (trainer_cli.main, ["analyze", *data, "--run", f"{location}/rounds"], f"{location}/rounds"),
        (trainer_cli.main, ["fit", *data, "--quintuplet", "--negatives", f"{location}/no", "--out", tmp_path / "m"],
         f"{location}/no: no such folder"),
        (miner_cli.main, ["diff", f"{location}/rounds/001", f"{location}/rounds/009"], f"{location}/rounds/009"),
        (miner_cli.main, ["check", f"{location}/rounds"], f"{location}/rounds: no negatives artifact here"),
    ]  # fmt: skip
    for main, arguments, said in cases:
        assert said in say(main, *arguments, code=3)


def test_a_damaged_checkpoint_is_not_evaluated(both: tuple[Path, str], folder: Path, new: New) -> None:
    location = new()
    buckets.copy(both[1], location)
    artifact = open_artifact(f"{location}/best", CHECKPOINT)
    bytes_ = bytearray(artifact.read("weights.safetensors"))
    bytes_[-1] ^= 1
    artifact.store.write("weights.safetensors", bytes(bytes_))
    shown = say(
        trainer_cli.main, "evaluate", "--data", f"vectors:folder={folder}", "--checkpoint", f"{location}/best", code=4
    )
    assert f"{location}/best/weights.safetensors" in shown


def test_members_and_results_of_a_comparison(tmp_path: Path, folder: Path, new: New) -> None:
    location, root = new(), tmp_path / "out"
    file = comparison_file(tmp_path / "two.toml", folder, OBJECTIVES[:2], compare={"seeds": 1})
    for out in (root, location):
        assert "results.png" in say(trainer_cli.main, "compare", file, "--out", out)
    assert buckets.hashes_in(location) == hashes(root) != {}
    found = buckets.objects(location)
    assert {"results.csv", "results.md", "results.parquet", "results.png"} < set(found)
    timed = {"ms_per_step", "mining_seconds"}
    rows = [
        [{name: value for name, value in row.items() if name not in timed} for row in csv.DictReader(io.StringIO(text))]
        for text in (found["results.csv"].decode(), (root / "results.csv").read_text())
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2

    before = buckets.versions(location)
    say(trainer_cli.main, "compare", file, "--out", location)
    assert buckets.versions(location) == before
    with hold_lease(open_store(location)):
        assert "writ" in say(trainer_cli.main, "compare", file, "--out", location, code=AnotherWriter.exit_code)


def test_a_place_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("runs/demo", f"{tmp_path}/runs", "s3://bucket/team/run"):
        place = Place.of(given)
        assert str(place) == given
        assert str(place / "best" / "weights") == f"{given}/best/weights"
    assert Place.of("runs/demo").last == "demo"
    assert Place.of(".").last == tmp_path.name
    assert Place.of("s3://bucket/team/run").last == "run"
    assert Place.of("s3://bucket/team/run").local is None
