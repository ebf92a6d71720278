"""A search in shards: the same negatives however it is cut, stopped, damaged or continued; and a side with itself."""

from __future__ import annotations

import itertools
import math
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miner import exhaustive, matrix
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs
from miner.artifacts.store import LocalStore
from miner.folder import open_folder
from miner.matrix import Grid, forget, grid_for, mine_exhaustively
from miner.memory import available, parse_size
from miner.scores import Unit, unit

BOTH = ("i2t", "t2i")


def cut(rows: int, columns: int):
    """A grid of shards that are no larger, whatever the memory."""
    return lambda num_rows, num_columns, *_: Grid(num_rows, num_columns, rows, columns)


def mined(problem, k, directions=BOTH, **how) -> dict[str, NegativeBlock]:
    vectors = {"image": problem.images, "text": problem.texts}
    found = mine_exhaustively(vectors, problem.pairs, directions, k, **how)
    return {direction: NegativeBlock.join(list(blocks)) for direction, blocks in found}


def same(one: dict[str, NegativeBlock], other: dict[str, NegativeBlock]) -> bool:
    return set(one) == set(other) and all(
        np.array_equal(getattr(one[d], name), getattr(other[d], name), equal_nan=name != "negatives")
        for d in one
        for name in ("anchor_rows", "negatives", "scores", "lowest_positive")
    )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 1000), (1000, 7), (16, 32), (13, 5), (39, 64)])
@pytest.mark.parametrize("grid", [False, True])
def test_shards_leave_no_trace(problem, oracle, rows, columns, grid):
    given = problem(seed=3, images=23, dim=8, grid=grid)
    for k in (1, 6, 23) if rows > 1 else (6,):  # a shard is a file, synced to disk
        found = mined(given, k, grid=cut(rows, columns), tile=(8, 16))
        for direction, block in found.items():
            expected = oracle(given, direction, k)
            for at, row in enumerate(block.anchor_rows.tolist()):
                negatives, scores, lowest = expected[row]
                assert block.negatives[at].tolist() == negatives + [-1] * (k - len(negatives))
                assert block.scores[at, : len(scores)].tolist() == scores
                assert float(block.lowest_positive[at]) == lowest
                assert (row in block.reasons) == (len(negatives) < k)


def within(problem, direction, k):
    """By anchor row of i2i or t2t, one pair at a time: its negatives, their scores, its lowest positive or nan."""
    side = "image" if direction == "i2i" else "text"
    vectors = (problem.images if side == "image" else problem.texts).astype(np.float64)
    ids = problem.pairs.ids(side)
    other = problem.pairs.text_rows if side == "image" else problem.pairs.image_rows
    own = problem.pairs.image_rows if side == "image" else problem.pairs.text_rows
    linked = [set(other[own == row].tolist()) for row in range(len(vectors))]
    found = {}
    for a, anchor in enumerate(vectors):
        scores = [float(np.float32(math.fsum((anchor * item).tolist()))) for item in vectors]
        rows = [g for g in range(len(vectors)) if not linked[a] & linked[g]]
        rows.sort(key=lambda g: (-scores[g], int(ids[g]) if side == "image" else ids[g]))
        positives = [scores[g] for g in range(len(vectors)) if g != a and linked[a] & linked[g]]
        found[a] = (rows[:k], [scores[g] for g in rows[:k]], min(positives, default=math.nan))
    return found


@pytest.mark.parametrize("direction", ["i2i", "t2t"])
@pytest.mark.parametrize("shards", [(1000, 1000), (9, 20)])
def test_a_side_with_itself(problem, direction, shards):
    given = problem(seed=5, images=31, dim=6, grid=True)
    for k in (1, 5, 31):
        (block,) = mined(given, k, [direction], grid=cut(*shards), tile=(8, 16)).values()
        expected = within(given, direction, k)
        lonely = 0
        for at, row in enumerate(block.anchor_rows.tolist()):
            negatives, scores, lowest = expected[row]
            assert row not in negatives
            assert block.negatives[at].tolist() == negatives + [-1] * (k - len(negatives))
            assert block.scores[at, : len(scores)].tolist() == scores
            assert np.array_equal(float(block.lowest_positive[at]), lowest, equal_nan=True)
            lonely += math.isnan(lowest)
        assert lonely < len(block)


def test_all_directions_at_once(problem):
    given = problem(seed=6, images=20)
    every = ("i2t", "t2i", "i2i", "t2t")
    together = mined(given, 4, every)
    apart = {direction: mined(given, 4, [direction])[direction] for direction in every}
    assert same(together, apart)


def drafts(root: Path) -> dict[str, Draft]:
    store = LocalStore(root)
    return {direction: Draft(store, f"search/{direction}", "search", {"of": direction}) for direction in BOTH}


def searched(monkeypatch) -> list[int]:
    """How many rows by columns every search of a shard compared, from now on."""
    seen: list[int] = []
    search = exhaustive.search

    def counted(tiles, num_rows, columns, *others, **how):
        seen.append(num_rows * len(columns))
        return search(tiles, num_rows, columns, *others, **how)

    monkeypatch.setattr(exhaustive, "search", counted)
    return seen


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", range(8))
def test_a_stopped_search_goes_on_at_the_shard(problem, tmp_path, monkeypatch, after):
    given = problem(seed=7, images=20)
    whole = mined(given, 4)
    seen = searched(monkeypatch)
    shards = len(grid_shards := Grid(20, given.pairs.num_texts, 11, 20).shards())
    assert shards == 2 * math.ceil(given.pairs.num_texts / 20)

    def stop(done: int, total: int) -> None:
        if len(seen) > after:
            raise Stopped

    how = {"grid": cut(11, 20), "drafts": drafts(tmp_path), "tile": (8, 8)}
    with pytest.raises(Stopped):
        mined(given, 4, progress=stop, **how)
    before = len(seen) - 1
    assert same(mined(given, 4, **how), whole)
    # Stopped in a shard's first panel, or behind its last one.
    assert len(seen) - before - 1 in (shards - before, shards - before - 1)
    assert len(grid_shards) == shards
    seen.clear()
    assert same(mined(given, 4, **how), whole)
    assert not seen
    for draft in how["drafts"].values():
        forget(draft)
    assert not list(tmp_path.rglob("shard-*"))


def test_a_damaged_shard_is_searched_again(problem, tmp_path, monkeypatch):
    given = problem(seed=8, images=20)
    how = {"grid": cut(11, 20), "drafts": drafts(tmp_path)}
    whole = mined(given, 4, **how)
    files = sorted(tmp_path.rglob("*.npy"))
    seen = searched(monkeypatch)
    for number, (file, harm) in enumerate(itertools.product(files, ("flip", "cut", "remove"))):
        data = file.read_bytes()
        if harm == "flip":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1 << number % 8]))
        elif harm == "cut":
            file.write_bytes(data[:-4])
        else:
            file.unlink()
        seen.clear()
        assert same(mined(given, 4, **how), whole)
        assert len(seen) == 1
        assert file.read_bytes() == data


def test_shards_of_another_search_are_not_used(problem, tmp_path, monkeypatch):
    given = problem(seed=9, images=20)
    how = {"grid": cut(11, 20), "drafts": drafts(tmp_path)}
    mined(given, 4, **how)
    seen = searched(monkeypatch)
    assert same(mined(given, 5, **how), mined(given, 5))
    assert len(seen) > 1
    seen.clear()
    mined(given, 5, **{**how, "grid": cut(11, 21)})
    assert len(seen) > 1


def test_memory_decides_the_rows_of_a_shard():
    plenty = grid_for(20_000, 100_000, 1024, 4, 60, 2**34)
    assert plenty.shards() == [(range(20_000), range(100_000))]
    scarce = grid_for(5_000_000, 5_000_000, 256, 2, 60, 2**32)
    assert 300_000 < scarce.rows < 1_000_000
    assert scarce.columns % exhaustive.TILE[1] == 0
    assert sum(len(rows) * len(columns) for rows, columns in scarce.shards()) == 25 * 10**12
    assert grid_for(100, 50, 4, 4, 10, 0).shards() == [(range(100), range(50))]


def test_sizes():
    assert [parse_size(text) for text in ("8G", "1.5 GiB", "500mb", "10k", "77")] == [
        8 * 2**30, 3 * 2**29, 500 * 2**20, 10 * 2**10, 77,
    ]  # fmt: skip
    for wrong in ("", "G", "-1G", "0", "8X", "nan", "9999999T"):
        with pytest.raises(BadInput, match="is not a size"):
            parse_size(wrong)
    assert 2**20 < available() < 2**50


def test_files_are_read_in_shards_not_whole(problem, tmp_path):
    """Memory-mapped float16 in another order than that of the ids."""
    given = problem(seed=10, images=25, dtype="f2")
    vectors = {}
    for side, array in (("image", given.images), ("text", given.texts)):
        np.save(tmp_path / f"{side}.npy", array)
        vectors[side] = np.load(tmp_path / f"{side}.npy", mmap_mode="r")
    found = mine_exhaustively(vectors, given.pairs, BOTH, 5, grid=cut(10, 30))
    assert same({d: NegativeBlock.join(list(blocks)) for d, blocks in found}, mined(given, 5))
    ordered = matrix.ordered(vectors["text"], np.arange(3, 9))
    assert isinstance(ordered, np.memmap)
    assert np.array_equal(matrix.ordered(vectors["text"], np.array([5, 2]))[:], given.texts[[5, 2]])


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_cosines_are_scaled_as_they_are_read(problem, tmp_path, dtype):
    """The same as of vectors that were scaled beforehand, one by one, and nothing is copied until it is read."""
    given = problem(seed=11, images=25, dtype=dtype, dim=7)
    scaled = {
        side: np.array([np.sqrt(math.fsum((row.astype("f8") ** 2).tolist())) for row in array])
        for side, array in (("image", given.images), ("text", given.texts))
    }
    expected = replace(
        given,
        images=(given.images.astype("f8") / scaled["image"][:, None]).astype("f4"),
        texts=(given.texts.astype("f8") / scaled["text"][:, None]).astype("f4"),
    )
    vectors = {}
    for side, array in (("image", given.images), ("text", given.texts)):
        np.save(tmp_path / f"{side}.npy", array)
        vectors[side] = Unit(np.load(tmp_path / f"{side}.npy", mmap_mode="r"))
        assert np.allclose(vectors[side], expected.images if side == "image" else expected.texts, rtol=1e-7)
    plain = {"image": unit(given.images), "text": unit(given.texts)}
    for grid in (cut(1000, 1000), cut(10, 30)):
        lazy, copied = (mine_exhaustively(each, given.pairs, BOTH, 5, grid=grid) for each in (vectors, plain))
        lazy, copied = ({d: NegativeBlock.join(list(blocks)) for d, blocks in found} for found in (lazy, copied))
        assert same(lazy, copied)
        assert all(np.allclose(lazy[d].scores, mined(expected, 5)[d].scores, atol=1e-6, equal_nan=True) for d in BOTH)
    part = matrix.ordered(vectors["text"], np.arange(3, 9))
    assert isinstance(part.vectors, np.memmap)
    assert np.array_equal(part[:], plain["text"][3:9])
    assert np.array_equal(vectors["text"][np.array([4, 1])], plain["text"][[4, 1]])


def test_a_cosine_takes_no_second_copy(tmp_path):
    rows = np.random.default_rng(0).standard_normal((20_000, 256), np.float32).astype(np.float16)
    for side in ("image", "text"):
        np.save(tmp_path / f"{side}s.npy", rows)
    (tmp_path / "pairs.csv").write_text("image_id,text_id\n" + "".join(f"{row},{row}\n" for row in range(len(rows))))
    opened = open_folder(tmp_path)
    tracemalloc.start()
    try:
        vectors = opened.vectors("image", "cosine")
        assert np.allclose(np.linalg.norm(vectors[100:200], axis=1), 1, atol=1e-3)
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes / 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_memory_mapped_files_are_nothing_to_warn_of(problem, tmp_path, device):
    torch = pytest.importorskip("torch", reason="torch warns of arrays that it cannot write to, and is not installed")
    given, vectors = problem(seed=13, images=25), {}
    for side, array in (("image", given.images), ("text", given.texts)):
        np.save(tmp_path / f"{side}.npy", array[given.pairs.order(side)])
        vectors[side] = np.load(tmp_path / f"{side}.npy", mmap_mode="r")
    names = {side: given.pairs.ids(side).take(given.pairs.order(side)) for side in vectors}
    places = given.pairs.places("image")[given.pairs.image_rows], given.pairs.places("text")[given.pairs.text_rows]
    pairs = Pairs(names["image"], names["text"], *places)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _, blocks in mine_exhaustively(vectors, pairs, ["t2t", "i2t", "t2i"], 5, device=device):
                list(blocks)
    finally:
        torch.set_warn_always(False)
