"""`pipelines verify` finds every changed byte, and says nothing of what is whole."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miner.artifacts.manifest import Manifest, canonical_json
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore
from pipelines.cli import main
from pipelines.verification import Meter, verify
from tests.miner.artifacts import conftest as servers

Copy = Callable[[Path], Path]
environment, moto, s3 = servers.environment, servers.moto, servers.s3


def pipelines(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def findings(root: object, *options: object) -> list[dict[str, Any]]:
    result = pipelines("verify", root, "--json", *options)
    found = json.loads(result.stdout)
    assert result.exit_code == (4 if found["damaged"] else 0)
    return list(found["findings"])


def flip(path: Path, random: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def test_a_finished_run_is_whole(finished_run: Path, run_twice: Path) -> None:
    for base in (finished_run, run_twice):
        result = pipelines("verify", base / "run")
        assert result.exit_code == 0, result.output
        assert "all as committed" in result.stdout
        assert len(result.stdout.splitlines()) == 1


def test_every_flipped_bit_is_found(run_twice: Path, copy_of: Copy) -> None:
    root, seeded = copy_of(run_twice), random.Random(5)
    manifests = sorted(root.rglob("manifest.json"))
    listed = [m.parent / name for m in manifests for name in json.loads(m.read_bytes())["files"]]
    assert {"weights.safetensors", "negatives.parquet", "index.bin"} <= {path.name for path in listed}
    for path in listed:
        before = path.read_bytes()
        flip(path, seeded)
        (found,) = findings(root)
        assert found["where"] == str(path.relative_to(root))
        assert "SHA-256" in found["what"]
        assert str(path.parent.relative_to(root)) in found["do"]
        path.write_bytes(before)
    for path in manifests:
        before = path.read_bytes()
        for broken in (before[:-1], before[: len(before) // 2], b"", before + b"\n", json.dumps(json.loads(before))):
            path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
            assert str(path.parent.relative_to(root)) in {f["where"] for f in findings(root) if f["damage"]}
        path.write_bytes(before)
        flip(path, seeded)
        assert str(path.parent.relative_to(root)) in {f["where"] for f in findings(root) if f["damage"]}
        path.write_bytes(before)
    assert findings(root) == []


def test_removed_and_cut_files_are_found(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    tables = sorted(root.rglob("negatives.parquet"))
    tables[0].unlink()
    tables[1].write_bytes(tables[1].read_bytes()[:-3])
    first, second = findings(root)
    assert (first["where"], first["what"]) == (
        str(tables[0].relative_to(root)),
        "missing, but its manifest lists it",
    )
    assert "bytes, where" in second["what"]
    text = pipelines("verify", root)
    assert text.exit_code == 4
    assert text.stdout.count("damaged: ") == 2
    assert "2 damaged." in text.stdout


def test_what_it_says_to_do_helps(finished_run: Path, copy_of: Copy) -> None:
    root, seeded = copy_of(finished_run), random.Random(2)
    flip(next(root.glob("rounds/002/mine-i2t/*/negatives.parquet")), seeded)
    flip(next(root.glob("rounds/001/encode-text/*/manifest.json")), seeded)
    for found in findings(root):
        if "delete the" in found["do"] or "delete this" in found["do"]:
            where = root / found["where"]
            shutil.rmtree(where if where.is_dir() else where.parent)
    assert pipelines("run", finished_run / "run.toml", "--run-dir", root).exit_code == 0
    assert findings(root) == []


def test_a_parent_that_is_gone_is_found(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    shutil.rmtree(next((root / "rounds/001/encode-image").iterdir()))
    found = findings(root)
    places = {"/".join(f["where"].split("/")[:3]) for f in found}
    assert places == {"rounds/001/index-image", "rounds/001/mine-i2t", "rounds/001/mine-t2i"}
    assert all(f["damage"] and "which is not here" in f["what"] for f in found)
    shutil.rmtree(root / "pairs")
    assert "pairs" in {f["where"] for f in findings(root) if f["damage"]}


def test_an_artifact_in_anothers_place_is_found(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    path = next(root.glob("rounds/001/evaluate/*/manifest.json"))
    whole = Manifest.loads(path.read_bytes(), "test")
    other = Manifest(whole.kind, {**whole.inputs, "parameters": {}}, whole.files, whole.meta)
    path.write_bytes(other.dumps())
    found = {f["where"].split("/")[2]: f["what"] for f in findings(root)}
    assert set(found) == {"evaluate", "report"}
    assert "renamed" in found["evaluate"]
    assert "made from r1/evaluate" in found["report"]


def test_what_no_manifest_knows_is_a_note(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    artifact = next((root / "rounds/001/mine-i2t").iterdir())
    (root / "notes.txt").write_text("mine")
    (artifact / "anchors-00000.npz.done").write_text("{}")
    (artifact / ".tmp-0123456789abcdef").write_text("half")
    (artifact.parent / "0123456789abcdef").mkdir()
    (artifact.parent / "0123456789abcdef" / "anchors-00000.npz").write_text("part")
    result = pipelines("verify", root)
    assert result.exit_code == 0
    assert result.stdout.count("note: ") == 4
    assert all(word in result.stdout for word in ("notes.txt", "npz.done", ".tmp-", "no manifest"))
    (root / "settings.json").write_text("{")
    assert [f["where"] for f in findings(root) if f["damage"]] == ["settings.json"]


def test_stages_and_rounds_narrow(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    flip(next(root.glob("rounds/001/mine-t2i/*/negatives.parquet")), random.Random(1))
    for options, count in (
        (["--round", 2], 0),
        (["--round", 1], 1),
        (["--stage", "mine"], 1),
        (["--stage", "mine-i2t"], 0),
        (["--stage", "mine-t2i", "--round", 1, "--round", 2], 1),
        (["--stage", "pairs"], 0),
        (["--stage", "fit", "--stage", "mine"], 1),
    ):
        assert len(findings(root, *options)) == count, options
    nothing = pipelines("verify", root, "--stage", "nothing")
    assert (nothing.exit_code, "no artifact of --stage nothing" in nothing.output) == (3, True)


def test_threads_change_nothing_and_all_is_counted(finished_run: Path, copy_of: Copy) -> None:
    root = copy_of(finished_run)
    flip(next(root.glob("rounds/001/fit/*/weights.safetensors")), random.Random(1))
    said: list[tuple[int, int, float]] = []
    reports = [
        verify(LocalStore(root), threads=threads, meter=Meter(lambda *told: said.append(told), 0.0))
        for threads in (1, 8)
    ]
    assert reports[0].findings == reports[1].findings
    assert said[-1][0] == said[-1][1] == reports[0].bytes > 100_000


def test_a_place_without_a_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        result = pipelines("verify", place)
        assert (result.exit_code, "nothing is here" in result.output) == (3, True)
    (tmp_path / "photo.txt").write_text("no run wrote this")
    result = pipelines("verify", tmp_path)
    assert (result.exit_code, "no artifact is here" in result.output) == (3, True)


def test_in_an_object_store(finished_run: Path, request: pytest.FixtureRequest) -> None:
    store: ObjectStore = request.getfixturevalue("s3")()
    root = finished_run / "run"
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        store.write(str(path.relative_to(root)), path.read_bytes())
    assert findings(store.url) == []
    table = str(next(root.glob("rounds/001/mine-i2t/*/negatives.parquet")).relative_to(root))
    weights = str(next(root.glob("rounds/002/fit/*/weights.safetensors")).relative_to(root))
    store.write(table, store.read(table)[:-1] + b"x")
    store.remove(weights)
    store.write("rounds/001/fit/0123456789abcdef/epochs/epoch-0001.json", canonical_json({}))
    found = {f["where"]: (f["damage"], f["what"]) for f in findings(store.url)}
    assert found[weights] == (True, "missing, but its manifest lists it")
    assert found[table][0]
    assert not found["rounds/001/fit/0123456789abcdef"][0]
    assert len(found) == 3
