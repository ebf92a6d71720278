"""Artifacts in a bucket: the same bytes as in a folder, damage found, damaged local copies fetched again."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from miner.artifacts import object_store
from miner.artifacts.embeddings import EMBEDDINGS, Embeddings, commit_embeddings, npy_bytes, part_name
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, find_artifact
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.store import LocalStore, Store

VECTORS = np.random.default_rng(0).normal(size=(10, 4)).astype("f4")


def _embeddings(store: Store, prefix: str = "e") -> Artifact:
    draft = Draft(store, prefix, EMBEDDINGS, {"checkpoint": "A"})
    shards = [VECTORS[:4], VECTORS[4:8], VECTORS[8:]]
    parts = [draft.add_part(part_name(at), npy_bytes(shard), len(shard)) for at, shard in enumerate(shards)]
    commit_embeddings(draft, "image", [str(row) for row in range(10)], parts, 4, {})
    for at in range(3):
        draft.drop_part(part_name(at), keep_file=True)
    found = draft.committed()
    assert found is not None
    return found


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _copies(store: ObjectStore) -> list[Path]:
    assert store.cache is not None
    return sorted((store.cache / "objects").iterdir())


def test_a_bucket_holds_what_a_folder_holds(store: Store, tmp_path: Path) -> None:
    folder = LocalStore(tmp_path / "folder")
    expected, found = _embeddings(folder), _embeddings(store)
    assert found.manifest.fingerprint == expected.manifest.fingerprint
    assert store.names("e") == folder.names("e")
    for name in folder.names("e"):
        assert store.read(f"e/{name}") == folder.read(f"e/{name}")
    found.verify()
    assert np.array_equal(Embeddings.open(found).array(), VECTORS)
    assert find_artifact(store, "f") is None
    assert find_artifact(store, "e") == found


def test_the_root_of_a_store_may_be_an_artifact(store: Store) -> None:
    made = _embeddings(store, ".")
    assert made.where == store.url
    assert find_artifact(store, ".") == made
    assert "manifest.json" in store.names(".")


def test_damage_in_the_bucket_is_found(store: Store) -> None:
    made = _embeddings(store)
    for name in store.names("e"):
        whole = store.read(f"e/{name}")
        for damaged in (_flip(whole), whole[:-3], whole + b"\n", b""):
            store.write(f"e/{name}", damaged)
            with pytest.raises(DamagedArtifact):
                find_artifact(store, "e") if name == "manifest.json" else made.path(name)
            if name != "manifest.json":
                with pytest.raises(DamagedArtifact, match=name):
                    made.read(name)
        store.remove(f"e/{name}")
        if name != "manifest.json":
            with pytest.raises(DamagedArtifact, match="missing"):
                made.path(name)
        store.write(f"e/{name}", whole)
    made.verify()


def test_a_damaged_copy_is_fetched_again(s3: Callable[..., ObjectStore]) -> None:
    store = s3()
    made = _embeddings(store)
    good = made.path(part_name(0)).read_bytes()
    (copy,) = _copies(store)
    for damaged in (_flip(good), good[:5], b""):
        copy.write_bytes(damaged)
        assert made.path(part_name(0)).read_bytes() == good
        assert copy.read_bytes() == good


def test_damage_in_the_bucket_does_not_stay_in_the_cache(s3: Callable[..., ObjectStore]) -> None:
    store = s3()
    made = _embeddings(store)
    good = store.read(f"e/{part_name(0)}")
    store.write(f"e/{part_name(0)}", _flip(good))
    with pytest.raises(DamagedArtifact):
        made.path(part_name(0))
    assert _copies(store) == []
    store.write(f"e/{part_name(0)}", good)
    assert made.path(part_name(0)).read_bytes() == good


def test_a_copy_is_fetched_once(s3: Callable[..., ObjectStore]) -> None:
    store = s3()
    store.write("x", b"content")
    first = store.local("x")
    changed = first.stat().st_ctime_ns
    inode = first.stat().st_ino
    assert store.local("x") == first
    assert (first.stat().st_ino, first.read_bytes()) == (inode, b"content")
    assert first.stat().st_ctime_ns >= changed
    assert store.forget("x")
    assert not store.forget("x")
    assert store.local("x").read_bytes() == b"content"


def test_a_full_cache_lets_go_of_what_nobody_used_lately(
    s3: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUINTAIN_CACHE_GIB", str(2500 / 2**30))
    store = s3()
    for name in ("a", "b", "c", "d"):
        store.write(name, name.encode() * 1000)
    old, older, used = store.local("a"), store.local("b"), store.local("c")
    left = old.with_name(".tmp-left-by-a-killed-download")
    left.write_bytes(b"x")
    now = time.time()
    for path, age in ((old, 7200), (older, 9000), (used, 60), (left, 2 * 86400)):
        os.utime(path, (now - age, now - age))
    fetched = store.local("d")
    assert not older.exists()
    assert not old.exists()
    assert used.exists()
    assert fetched.exists()
    assert not left.exists()
    assert store.local("a").read_bytes() == b"a" * 1000


def test_a_large_object_comes_in_pieces(s3: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_RANGE", 1000)
    store = s3()
    for size in (999, 1000, 1001, 5000, 5432):
        data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
        store.write("x", data)
        assert store.read("x") == data
        assert store.local("x").read_bytes() == data


def test_parts_of_a_killed_attempt(store: Store) -> None:
    draft = Draft(store, "e", EMBEDDINGS, {"checkpoint": "A"})
    record = draft.add_part("part-00000.npy", b"vectors of A", 3)
    assert draft.find_part("part-00000.npy") == record
    path = draft.part_path("part-00000.npy")
    assert path is not None
    assert path.read_bytes() == b"vectors of A"
    assert Draft(store, "e", EMBEDDINGS, {"checkpoint": "B"}).find_part("part-00000.npy") is None
    store.write("e/part-00000.npy", b"vectors of a")
    assert draft.find_part("part-00000.npy") is None
    assert draft.part_path("part-00000.npy") is None
    draft.drop_part("part-00000.npy", keep_file=False)
    assert store.names("e") == []


def test_a_whole_bucket_is_not_emptied(s3: Callable[..., ObjectStore]) -> None:
    store = s3(prefix="")
    store.write("a", b"x")
    with pytest.raises(BadInput, match="whole bucket"):
        store.remove(".")
    assert store.names("") == ["a"]


def test_workers_add_parts(store: Store) -> None:
    """A draft goes to processes of their own as it is; they find credentials in their environment."""
    draft = Draft(store, "e", EMBEDDINGS, {})
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        made = [pool.submit(draft.add_part, part_name(at), npy_bytes(VECTORS[at:]), 1) for at in range(3)]
        records = [each.result(60) for each in made]
    assert [draft.find_part(part_name(at)) for at in range(3)] == records


def test_of_many_commits_one_counts(store: Store) -> None:
    def commit(writer: int) -> str:
        draft = Draft(store, "e", EMBEDDINGS, {})
        return draft.commit({}, {"writer": writer}).manifest.fingerprint

    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(commit, range(8)))
    found = find_artifact(store, "e")
    assert found is not None
    assert seen == {found.manifest.fingerprint}


def test_more_names_than_one_answer_holds(store: Store) -> None:
    """S3 and Google give 1,000 names at a time; deletes too."""
    names = [f"{number:05d}" if number % 2 else f"{number:05d}/x" for number in range(1005)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.write(f"many/{name}", b""), names))
    assert store.names("many") == [f"{number:05d}" for number in range(1005)]
    store.write("kept", b"")
    store.remove("many")
    assert store.names("many") == []
    assert store.names("") == ["kept"]
