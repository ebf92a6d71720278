"""The negative table: canonical bytes, what it refuses, and what others read in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from miner import index
from miner.artifacts import negatives as negatives_module
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, NegativeTable, write_negatives
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore
from miner.nearest import mine

PROVENANCE = {"round": 2, "metric": "ip", "index": "flat", "checkpoint": "c" * 64}


def blocks_of(problem, direction, k, block=None) -> list[NegativeBlock]:
    vectors, gallery = problem.vectors(direction)
    return list(mine(vectors, index.build("flat", gallery), gallery, problem.pairs, direction, k, block=block))


def write(folder: Path, name: str, problem, direction, k, blocks) -> Artifact:
    draft = Draft(LocalStore(folder), name, NEGATIVES, {"test": name})
    return write_negatives(draft, blocks, problem.pairs, direction, k, PROVENANCE)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_opens_as_it_was_mined(problem, tmp_path, direction, dtype):
    given = problem(dtype=dtype)
    k = len(given.vectors(direction)[1]) - 3
    block = NegativeBlock.join(blocks_of(given, direction, k))
    table = NegativeTable.open(write(tmp_path, "a", given, direction, k, [block]), given.pairs)
    rows = block.anchor_rows
    assert (table.direction, table.k) == (direction, k)
    assert table.negatives.dtype == np.int32
    assert np.array_equal(table.negatives[rows], block.negatives)
    assert table.scores[rows].tobytes() == block.scores.tobytes()
    assert table.lowest_positive[rows].tobytes() == block.lowest_positive.tobytes()
    assert np.array_equal(table.num_negatives[rows], (block.negatives >= 0).sum(1))
    known = {"direction": direction, "k": k, "pairs": given.pairs.unordered_fingerprint}
    assert table.provenance == {**PROVENANCE, **known}


def test_never_a_positive_never_twice(problem, tmp_path):
    given = problem(grid=True)
    table = NegativeTable.open(write(tmp_path, "a", given, "i2t", 20, blocks_of(given, "i2t", 20)), given.pairs)
    for image, row in enumerate(table.negatives):
        assert len(set(row.tolist())) == 20
        assert not given.pairs.belong(np.array([image]), row.astype(np.int64)).any()


def test_bytes_do_not_depend_on_the_blocks(problem, tmp_path, monkeypatch):
    given = problem()
    files = set()
    monkeypatch.setattr(negatives_module, "_GROUP", 7)
    for size in (1, 5, 7, 20, 1000):
        artifact = write(tmp_path, f"t{size}", given, "i2t", 5, blocks_of(given, "i2t", 5, block=size))
        files.add((artifact.path("negatives.parquet").read_bytes(), artifact.path("shortfalls.parquet").read_bytes()))
    assert len(files) == 1
    file = pq.ParquetFile(artifact.path("negatives.parquet"))
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [35] * 5 + [25]
    assert np.array_equal(
        NegativeTable.open(artifact, given.pairs).negatives[given.pairs.order("image")],
        NegativeBlock.join(blocks_of(given, "i2t", 5)).negatives,
    )


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_bytes_do_not_depend_on_the_order_of_the_rows(problem, tmp_path, direction, grid):
    given = problem(grid=grid)
    k = len(given.vectors(direction)[1]) - 4
    first = write(tmp_path, "a", given, direction, k, blocks_of(given, direction, k))
    for seed in (1, 2):
        other = given.permuted(seed)
        assert other.pairs.fingerprint != given.pairs.fingerprint
        again = write(tmp_path, f"b{seed}", other, direction, k, blocks_of(other, direction, k))
        for name in first.manifest.files:
            assert again.path(name).read_bytes() == first.path(name).read_bytes()
        # A table names ids, so one order's table opens for the other's rows.
        table = NegativeTable.open(first, other.pairs)
        assert np.array_equal(table.negatives, NegativeTable.open(again, other.pairs).negatives)


def test_dictionaries_never_fall_back(tmp_path):
    """Ids of 2 MiB in one row group: twice the default limit, beyond which the rest would be written out in full."""
    rows, k = 20_000, 4
    ids = tuple(f"{row:0>100}" for row in range(rows))
    pairs = Pairs(ids, ids, np.arange(rows), np.arange(rows))
    negatives = ((np.arange(rows)[:, None] + np.arange(1, k + 1)) % rows).astype(np.int32)
    scores, lowest = np.full((rows, k), 0.5, np.float32), np.full(rows, 0.7, np.float32)
    block = NegativeBlock(np.arange(rows), negatives, scores, lowest)
    draft = Draft(LocalStore(tmp_path), "a", NEGATIVES, {})
    artifact = write_negatives(draft, [block.cut(0, 9), block.cut(9, rows)], pairs, "i2t", k, {})
    group = pq.read_metadata(artifact.path("negatives.parquet")).row_group(0)
    for column in (group.column(0), group.column(2)):
        assert "RLE_DICTIONARY" in column.encodings
        assert column.total_uncompressed_size < 1.1 * rows * 104 + k * rows * 2
    assert np.array_equal(NegativeTable.open(artifact, pairs).negatives, block.negatives)


def test_pandas_polars_and_duckdb_read_it(problem, tmp_path):
    given = problem()
    k = len(given.texts) - 3
    artifact = write(tmp_path, "a", given, "i2t", k, blocks_of(given, "i2t", k))
    table = NegativeTable.open(artifact, given.pairs)
    expected = [
        (
            given.pairs.image_ids[image],
            rank,
            given.pairs.text_ids[table.negatives[image, rank]],
            float(table.scores[image, rank]),
            float(table.lowest_positive[image]),
        )
        for image in given.pairs.order("image")
        for rank in range(table.num_negatives[image])
    ]
    path = artifact.path("negatives.parquet")
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["anchor_id", "rank", "negative_id", "score", "lowest_positive"]
    assert list(frame.itertuples(index=False, name=None)) == expected
    assert pl.read_parquet(path).rows() == expected
    assert duckdb.connect().execute(f"select * from '{path}'").fetchall() == expected
    short = pd.read_parquet(artifact.path("shortfalls.parquet"))
    assert len(short) == int((table.num_negatives < k).sum()) > 0
    for row in short.itertuples():
        image = given.pairs.image_ids.index(row.anchor_id)
        assert (row.found, row.wanted) == (table.num_negatives[image], k)
        assert row.reason == f"{len(given.texts) - row.found} of the {len(given.texts)} texts are its positives"
    footer = json.loads(pq.read_metadata(path).metadata[b"quintain"])
    assert footer == table.provenance == artifact.manifest.meta["provenance"]


def test_an_anchor_whose_positives_are_the_whole_gallery(tmp_path, problem):
    pairs = Pairs(("a", "b"), ("x", "y", "z"), np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]))
    given = replace(problem(), pairs=pairs, images=np.eye(2, 3, dtype="f4"), texts=np.ones((3, 3), "f4"))
    artifact = write(tmp_path, "a", given, "i2t", 2, blocks_of(given, "i2t", 2))
    table = NegativeTable.open(artifact, pairs)
    assert table.num_negatives.tolist() == [0, 2]
    assert table.negatives.tolist() == [[-1, -1], [0, 2]]
    assert table.lowest_positive.tolist() == [1, 1]
    assert artifact.manifest.meta["shortfalls"] == 1
    everything = write(
        tmp_path,
        "b",
        replace(
            given,
            pairs=Pairs(("a",), ("x",), np.array([0]), np.array([0])),
            images=given.images[:1],
            texts=given.texts[:1],
        ),
        "i2t",
        1,
        [
            NegativeBlock(
                np.array([0]),
                np.full((1, 1), -1, np.int32),
                np.full((1, 1), np.nan, np.float32),
                np.ones(1, np.float32),
                {0: "its only text"},
            )
        ],
    )
    assert everything.manifest.meta["negatives"] == 0
    assert pd.read_parquet(everything.path("negatives.parquet")).empty


def test_refuses_what_is_no_table(problem, tmp_path):
    given = problem()
    good = NegativeBlock.join(blocks_of(given, "i2t", 5))
    hole = good.negatives.copy()
    hole[3, 2] = -1
    for wrong, sentence in (
        (good.cut(0, 39), "39 of 40 anchors"),
        (replace(good, anchor_rows=good.anchor_rows[::-1]), "in id order"),
        (replace(good, negatives=good.negatives[:, :4], scores=good.scores[:, :4]), "give \\(anchors, 5\\)"),
        (replace(good, negatives=hole), "hole"),
        (replace(good, negatives=np.where(np.arange(5) < 4, good.negatives, -1).astype(np.int32)), "say why"),
    ):
        with pytest.raises(BadInput, match=sentence):
            write(tmp_path, "a", given, "i2t", 5, [wrong])
    assert not (tmp_path / "a" / "manifest.json").exists()
    assert list((tmp_path / "a").iterdir()) == []


def test_refuses_other_pairs_and_other_artifacts(problem, tmp_path):
    given = problem()
    artifact = write(tmp_path, "a", given, "i2t", 5, blocks_of(given, "i2t", 5))
    image, text = np.argwhere(~given.pairs.belong(np.arange(40), np.arange(given.pairs.num_texts)))[0]
    other = replace(
        given.pairs,
        image_rows=np.append(given.pairs.image_rows, image),
        text_rows=np.append(given.pairs.text_rows, text),
    )
    with pytest.raises(BadInput, match="other pairs"):
        NegativeTable.open(artifact, other)
    with pytest.raises(BadInput, match="not a negative table"):
        NegativeTable.open(replace(artifact, manifest=replace(artifact.manifest, kind="index")), given.pairs)
    with pytest.raises(BadInput, match="no negatives artifact"):
        NegativeTable.open(tmp_path / "nowhere", given.pairs)
    artifact.path("shortfalls.parquet").unlink()
    with pytest.raises(DamagedArtifact, match="missing"):
        NegativeTable.open(tmp_path / "a", given.pairs)


def test_summary_counts_what_the_table_holds(problem, tmp_path):
    given = problem()
    artifact = write(tmp_path, "a", given, "t2i", 4, blocks_of(given, "t2i", 4))
    frame = pd.read_parquet(artifact.path("negatives.parquet")).astype({"score": "f8", "lowest_positive": "f8"})
    frame["hardness"] = frame.score - frame.lowest_positive
    meta = artifact.manifest.meta
    assert meta["hardness_mean"] == pytest.approx(frame.hardness.mean(), abs=1e-6)
    assert meta["share_above_lowest_positive"] == pytest.approx((frame.hardness > 0).mean(), abs=1e-6)
    assert meta["share_anchors_above_lowest_positive"] == pytest.approx(
        (frame[frame["rank"] == 0].hardness > 0).mean(), abs=1e-6
    )
    assert (meta["anchors"], meta["negatives"]) == (len(given.texts), len(frame))
