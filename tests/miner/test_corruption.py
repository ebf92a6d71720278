"""Damage on disk is found before anything is used: a sample of bit flips and cuts over every file of every artifact."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miner import index
from miner.artifacts.embeddings import EMBEDDINGS, Embeddings, commit_embeddings, npy_bytes, part_name
from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.negatives import NEGATIVES, NegativeTable, write_negatives
from miner.artifacts.store import LocalStore
from miner.nearest import mine


@pytest.fixture
def artifacts(problem, tmp_path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """By kind: the folder of a committed artifact, and what reads all of it."""
    made = problem(images=12, dim=4)
    store = LocalStore(tmp_path)
    gallery = index.build("flat", made.texts)
    index.save(Draft(store, "index", index.INDEX, {}), gallery, {})
    blocks = mine(made.images, gallery, made.texts, made.pairs, "i2t", len(made.texts) - 3)
    write_negatives(Draft(store, "negatives", NEGATIVES, {}), blocks, made.pairs, "i2t", len(made.texts) - 3, {})
    draft = Draft(store, "embeddings", EMBEDDINGS, {})
    shards = [made.images[:5], made.images[5:10], made.images[10:]]
    parts = [draft.add_part(part_name(at), npy_bytes(shard), len(shard)) for at, shard in enumerate(shards)]
    commit_embeddings(draft, "image", made.pairs.image_ids, parts, 4, {})
    return {
        "index": (tmp_path / "index", lambda path: index.load(open_artifact(path, index.INDEX)).dumps()),
        "negatives": (tmp_path / "negatives", lambda path: _bytes(NegativeTable.open(path, made.pairs))),
        "embeddings": (
            tmp_path / "embeddings",
            lambda path: Embeddings.open(open_artifact(path, EMBEDDINGS)).array().tobytes(),
        ),
    }


def _bytes(table: NegativeTable) -> bytes:
    out = io.BytesIO()
    for array in (table.negatives, table.scores, table.lowest_positive, table.num_negatives):
        out.write(array.tobytes())
    return out.getvalue()


@pytest.mark.parametrize(("flips", "cuts"), [(150, 25), pytest.param(5000, 500, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("kind", ["index", "negatives", "embeddings"])
def test_no_damage_is_used(artifacts, kind, flips, cuts):
    """`flips` single bits and `cuts` truncations per file."""
    folder, read = artifacts[kind]
    intact = read(folder)
    assert intact
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in folder.iterdir())
    assert "manifest.json" in names
    assert len(names) >= 2
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), flips):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(bytes(damaged))
            with pytest.raises(DamagedArtifact, match=folder.name):
                read(folder)
        for length in rng.integers(0, len(whole), cuts):
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedArtifact):
                read(folder)
        path.write_bytes(whole + b"\n")
        with pytest.raises(DamagedArtifact):
            read(folder)
        path.write_bytes(whole)
    assert read(folder) == intact


@pytest.mark.parametrize("kind", ["index", "negatives", "embeddings"])
def test_a_missing_file_is_damage(artifacts, kind):
    folder, read = artifacts[kind]
    for path in sorted(folder.iterdir()):
        if path.name != "manifest.json":
            path.rename(folder / ".away")
            with pytest.raises(DamagedArtifact, match="missing"):
                read(folder)
            (folder / ".away").rename(path)
    read(folder)
