"""Single bits flipped and files cut, over every kind of artifact and whatever else is read back: used silently, never.

A reader either refuses (DamagedArtifact), or gives what it gives of the intact file: then it does not read that byte,
and hashing the artifact, as `pipelines verify` does, still finds it.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from miner.artifacts.embeddings import EMBEDDINGS, Embeddings, commit_embeddings, npy_bytes, part_name
from miner.artifacts.errors import AnotherWriter, BadInput, DamagedArtifact
from miner.artifacts.lease import hold_lease
from miner.artifacts.manifest import Draft, canonical_json, find_artifact
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.place import Place
from miner.artifacts.sealed import sealed
from miner.artifacts.store import LocalStore
from pipelines import log, loop
from pipelines.kept_verdicts import keep_verdicts, kept_copy
from pipelines.settings import Settings
from tests.miner.artifacts import conftest as servers
from tests.pipelines import kinds
from tests.pipelines.builders import raw_settings, write_toml, write_vectors
from tests.pipelines.kinds import Piece
from trainer import epochs

environment, moto, s3 = servers.environment, servers.moto, servers.s3

Amounts = tuple[int, int]
ALL = (10_000, 1_500)  # flips and cuts of the long run, over everything
LOOSE = (1_000, 300)  # for each thing that is no artifact


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Piece]:
    return kinds.make(tmp_path_factory.mktemp("kinds"))


@dataclass
class Damaged:
    """A file with a bit flipped, or cut, while the block lasts; counted."""

    seed: random.Random
    count: Counter[str] = field(default_factory=Counter)

    def each(self, path: Path, flips: int, cuts: int) -> Iterator[str]:
        whole = path.read_bytes()
        assert whole, path
        try:
            for _ in range(flips):
                bit = self.seed.randrange(8 * len(whole))
                data = bytearray(whole)
                data[bit // 8] ^= 1 << bit % 8
                path.write_bytes(data)
                self.count["flips"] += 1
                yield f"{path.name}: bit {bit}"
            for _ in range(cuts):
                length = self.seed.randrange(len(whole))
                path.write_bytes(whole[:length])
                self.count["cuts"] += 1
                yield f"{path.name}: cut to {length} bytes"
        finally:
            path.write_bytes(whole)


def test_every_kind_that_is_written_is_damaged_here(pieces: list[Piece]) -> None:
    assert {piece.kind for piece in pieces} == kinds.declared()


def test_a_file_of_every_artifact_that_is_gone_is_said(pieces: list[Piece]) -> None:
    """And every file but those that only people read has a reader here that misses it."""
    missed, every = set(), set()
    for piece in (p for p in pieces if p.kind != "search"):
        for path in _files(piece.folder):
            if path.name == "manifest.json":
                continue
            every.add(path.name)
            path.rename(piece.folder.parent / ".away")
            try:
                missed |= {path.name} if _refused(piece.read) else set()
                with pytest.raises(DamagedArtifact, match="missing"):
                    _hash(piece.folder)
            finally:
                (piece.folder.parent / ".away").rename(path)
    assert every - missed == {"metrics.json", "tuned.json"}  # the manifest holds the same, and is what is read


@pytest.mark.parametrize("amounts", [(600, 120), pytest.param(ALL, marks=pytest.mark.heavy)])
def test_no_damage_to_an_artifact_is_used(
    pieces: list[Piece], amounts: Amounts, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Damaged(random.Random(7))
    files = [(piece, path) for piece in pieces for path in _files(piece.folder)]
    flips, cuts = (-(-amount // len(files)) for amount in amounts)
    wrong = []
    for piece, path in files:
        intact = piece.read()
        assert intact is not None
        for what in damaged.each(path, flips, cuts):
            try:
                found = piece.read()
            except (DamagedArtifact, BadInput) as error:
                # A damaged header may be read before its hash is compared; it is refused all the same.
                if isinstance(error, BadInput) and piece.kind != "features":
                    wrong.append(f"{piece.kind}/{what}: {error}")
                continue
            if found != intact and not (found is None and piece.kind == "search"):
                wrong.append(f"{piece.kind}/{what}: used")
            if piece.kind != "search" and not _refused(lambda folder=piece.folder: _hash(folder)):
                wrong.append(f"{piece.kind}/{what}: not found by hashing")
        assert piece.read() == intact
    if amounts == ALL:
        with capsys.disabled():
            print(f"\n{dict(damaged.count)} over {len(files)} files of {len(pieces)} readers, {len(wrong)} used")
    assert not wrong, wrong[:5]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _hash(folder: Path) -> None:
    found = find_artifact(LocalStore(folder), ".")
    assert found is not None
    found.verify()


def _refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except (DamagedArtifact, BadInput):
        return True
    return False


@dataclass(frozen=True)
class Loose:
    """What no manifest lists and is read back: its files, its reader, and what else than the intact value may come."""

    files: list[Path]
    read: Callable[[], object]
    instead: tuple[object, ...] = ()


def _part(base: Path) -> Loose:
    draft = Draft(LocalStore(base), "e", "embeddings", {"checkpoint": "A"})
    draft.add_part("part-00000.npy", bytes(range(100)), 7)
    files = [base / "e" / "part-00000.npy", base / "e" / "part-00000.npy.done"]
    # Not found is made again.
    return Loose(files, lambda: draft.find_part("part-00000.npy"), (None,))


def _epochs(base: Path) -> Loose:
    place = Place(LocalStore(base), "epochs")
    tensors = {"raw/a": torch.arange(12.0), "exp_avg/a": torch.ones(3)}
    for epoch in (1, 2):
        logs = [{"epoch": each, "loss": each / 7, "warm_up": False} for each in range(epoch + 1)]
        epochs.write(place, "key", epochs.EpochFile(epoch, 10 * epoch, {**tensors, "n": torch.tensor(epoch)}, logs))

    def read(last: int = 2) -> object:
        found = epochs.read_latest(place, "key", last)
        return found and (found.epoch, found.updates, save(found.tensors), found.logs)

    return Loose(sorted((base / "epochs").glob("epoch-0002.*")), read, (read(1),))


def _settings(base: Path) -> Loose:
    store = LocalStore(base)
    settings = Settings.parse(raw_settings(base), "test")
    loop.keep(store, loop.SETTINGS, canonical_json(sealed(settings.dump())))
    return Loose([base / loop.SETTINGS], lambda: loop.saved_settings(store).dump())


def _verdicts(base: Path) -> Loose:
    (base / "data").mkdir()
    folder, store = write_vectors(base / "data"), LocalStore(base / "run")
    line = {"direction": "i2t", "anchor_id": "i0001", "negative_id": "t0002", "verdict": "too_easy"}
    (base / "judged.jsonl").write_text(json.dumps(line) + "\n")
    raw = raw_settings(folder, mine={"verdicts": str(base / "judged.jsonl")})
    settings = Settings.load(write_toml(base / "run.toml", raw))
    keep_verdicts(settings, store)
    name = settings.mine.kept_verdicts
    return Loose([base / "run" / name], lambda: kept_copy(store, name).read_bytes())


def _log(base: Path) -> Loose:
    store = LocalStore(base)
    for number in range(4):
        log.append(store, {"stage": "r0/fit", "prefix": "rounds/000/fit/a", "event": "done", "seconds": number + 0.5})

    def read() -> list[dict[str, object]]:
        # A line whose hash has lost its name passes as one of an older run, with a key more.
        return [{key: line[key] for key in ("stage", "prefix", "event", "seconds")} for line in log.lines(store)]

    every = read()
    # A line that is not what was written is left out; a lost line end takes two with it.
    left = [[line for line in every if line not in gone] for n in (1, 2) for gone in itertools.combinations(every, n)]
    return Loose([base / log.LOG], read, (*left, *(every[:n] for n in range(4))))


@pytest.mark.parametrize("amounts", [(150, 40), pytest.param(LOOSE, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("make", [_part, _epochs, _settings, _verdicts, _log])
def test_what_no_manifest_lists_is_not_used_when_damaged(
    make: Callable[[Path], Loose], amounts: Amounts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loose, damaged = make(tmp_path), Damaged(random.Random(3))
    intact = loose.read()
    assert intact
    refused, used = 0, []
    for path in loose.files:
        for what in damaged.each(path, *(amount // len(loose.files) for amount in amounts)):
            try:
                found = loose.read()
            except DamagedArtifact:
                refused += 1
                continue
            if found != intact:
                refused += 1
                used += [] if found in loose.instead else [f"{what}: {found}"]
    assert not used, used[:3]
    # Bits that change no value: a blank of the layout, the case of an exponent.
    assert refused > 0.9 * damaged.count.total()
    assert loose.read() == intact


def test_half_a_line_takes_no_other_with_it(tmp_path: Path) -> None:
    """As a killed run or a full disk leaves it."""
    store = LocalStore(tmp_path)
    line = {"stage": "r0/fit", "prefix": "rounds/000/fit/a", "event": "start"}
    log.append(store, line)
    whole = (tmp_path / log.LOG).read_bytes()
    (tmp_path / log.LOG).write_bytes(whole + whole[:30])
    log.append(store, {**line, "event": "done"})
    assert log.lines(store) == [line, {**line, "event": "done"}]


@pytest.mark.parametrize("amounts", [(100, 20), pytest.param(LOOSE, marks=pytest.mark.heavy)])
def test_a_damaged_lease_never_leaves_two_writers(amounts: Amounts, tmp_path: Path) -> None:
    """It may free the place too early; who held it learns that at its next beat, before its next stage."""
    store = LocalStore(tmp_path)
    with hold_lease(store, seconds=600) as first:
        for _ in Damaged(random.Random(5)).each(tmp_path / "lease" / "1", *amounts):
            try:
                with hold_lease(store) as second:
                    assert second.epoch == 2
                    first._renew()
                    with pytest.raises(AnotherWriter, match="taken over"):
                        first.check()
            except AnotherWriter:
                first._renew()
                first.check()
            else:
                first._lost = None
                store.remove("lease/2")


@pytest.mark.parametrize("amounts", [(40, 10), pytest.param((400, 100), marks=pytest.mark.heavy)])
def test_damaged_copies_of_objects_are_fetched_again(
    s3: Callable[..., ObjectStore], amounts: Amounts, tmp_path: Path
) -> None:
    store = s3()
    vectors = np.arange(30, dtype=np.float32).reshape(10, 3)
    draft = Draft(store, "e", EMBEDDINGS, {})
    part = draft.add_part(part_name(0), npy_bytes(vectors), 10)
    artifact = commit_embeddings(draft, "image", [str(row) for row in range(10)], [part], 3, {})
    assert artifact.path(part_name(0)).read_bytes() == npy_bytes(vectors)
    assert store.cache is not None
    (copy,) = (store.cache / "objects").glob("*.npy")
    for what in Damaged(random.Random(1)).each(copy, *amounts):
        found = find_artifact(store, "e")
        assert found is not None
        assert (Embeddings.open(found).array() == vectors).all(), what
