"""One pass over the score matrix: the slow oracle's negatives in both directions, whatever the tiles."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from miner import exhaustive, fused, tiles
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs
from miner.best import Best
from miner.index import _torch
from miner.matrix import mine_exhaustively
from miner.scores import norms, similarities, similarities_by_query

KINDS = ["float32", "int8", "numpy", "fused"]
WHERE: dict[str, str] = {}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Every kind of tile, instead of the one that is fastest here."""
    if request.param == "numpy":
        monkeypatch.setattr(_torch, "available", lambda: False)
    else:
        pytest.importorskip("torch", reason="torch makes these tiles, and is not installed")

    def chosen(rows, lengths, columns, max_norm, row_extent, column_extent):
        if request.param == "int8":
            return tiles.Int8(rows, lengths, row_extent, max_norm, column_extent)
        return tiles.Float32(rows, lengths, max_norm)

    monkeypatch.setattr("miner.matrix.fastest", chosen)
    if request.param == "fused":  # what a GPU does, on one where there is one
        monkeypatch.setitem(WHERE, "device", fused.device() or "cpu")
    return request.param


def mined(problem, k, directions=("i2t", "t2i"), **how) -> dict[str, NegativeBlock]:
    vectors = {"image": problem.images, "text": problem.texts}
    return {
        direction: NegativeBlock.join(list(blocks))
        for direction, blocks in mine_exhaustively(vectors, problem.pairs, directions, k, **WHERE, **how)
    }


def assert_same(problem, oracle, k, **how) -> None:
    found = mined(problem, k, **how)
    assert set(found) == {"i2t", "t2i"}
    for direction, block in found.items():
        expected = oracle(problem, direction, k)
        anchors = problem.pairs.order("image" if direction == "i2t" else "text")
        assert block.anchor_rows.tolist() == anchors.tolist()
        for at, row in enumerate(block.anchor_rows.tolist()):
            rows, scores, lowest = expected[row]
            assert block.negatives[at].tolist() == rows + [-1] * (k - len(rows))
            assert block.scores[at, : len(rows)].tolist() == scores
            assert np.isnan(block.scores[at, len(rows) :]).all()
            assert float(block.lowest_positive[at]) == lowest
            assert (row in block.reasons) == (len(rows) < k)


@pytest.mark.parametrize(("dtype", "grid"), [("f4", False), ("f2", False), ("f4", True), ("f2", True)])
def test_equals_the_oracle(problem, oracle, kind, dtype, grid):
    given = problem(seed=1, dtype=dtype, grid=grid)
    smaller = min(given.pairs.num_images, given.pairs.num_texts)
    for k in (1, 7, 20, smaller - 1, smaller):
        assert_same(given, oracle, k)


@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (7, 33), (64, 16), (1000, 1000)])
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_and_threads_change_nothing(problem, oracle, kind, tile, threads):
    assert_same(problem(seed=2, images=40, dim=12), oracle, 5, tile=tile, threads=threads)


def test_a_larger_gallery_in_tiles(problem, oracle, kind):
    """Lists are full many times over, and cut."""
    assert_same(problem(seed=3, images=400, dim=31), oracle, 3, tile=(48, 64), threads=2)


def test_near_ties(problem, oracle, kind):
    """Scores that no tile tells apart: all remain, until the lists are full and everything is compared."""
    rng = np.random.default_rng(4)
    given = problem(seed=4, images=120, dim=24)
    base = rng.normal(size=24).astype(np.float32)
    for noise in (0.0, 3e-7, 1e-3):
        texts = (base + rng.normal(scale=noise, size=given.texts.shape)).astype(np.float32)
        assert_same(type(given)(given.pairs, given.images, texts), oracle, 5, tile=(32, 64))


def test_lengths_that_differ(problem, oracle, kind):
    given = problem(seed=5, images=90, dim=16)
    rng = np.random.default_rng(5)
    stretch = [np.exp(3 * rng.normal(size=(len(side), 1))).astype(np.float32) for side in (given.images, given.texts)]
    assert_same(type(given)(given.pairs, given.images * stretch[0], given.texts * stretch[1]), oracle, 9, tile=(32, 64))


def test_one_anchor_with_very_many_positives(problem, oracle, kind):
    rng = np.random.default_rng(6)
    links = [(0, text) for text in range(190)] + [(image, 190 + image) for image in range(1, 30)]
    pairs = Pairs(tuple(f"i{i}" for i in range(30)), tuple(map(str, range(220))), *np.array([*links, (1, 190)]).T)
    many = type(problem())(pairs, rng.normal(size=(30, 8)).astype("f4"), rng.normal(size=(220, 8)).astype("f4"))
    for k in (5, 29, 30):
        assert_same(many, oracle, k)


def test_one_direction_alone(problem, oracle, kind):
    given = problem(seed=7)
    both = mined(given, 6)
    for direction in ("i2t", "t2i"):
        alone = mined(given, 6, (direction,))
        assert set(alone) == {direction}
        assert np.array_equal(alone[direction].negatives, both[direction].negatives)


def test_bad_input(problem, kind):
    given = problem(seed=8)
    with pytest.raises(BadInput, match="larger than the gallery"):
        mined(given, 10_000)
    long = type(given)(given.pairs, given.images * np.float32(1e25), given.texts * np.float32(1e25))
    with pytest.raises(BadInput, match="overflows float32; scale them down"):
        mined(long, 3)


@pytest.mark.parametrize("dim", [1, 2, 17, 256, 1000])
@pytest.mark.parametrize("shape", ["normal", "spiky", "flat", "lengths", "tiny"])
def test_tiles_are_off_by_no_more_than_they_say(dim, shape):
    pytest.importorskip("torch", reason="torch makes int8 tiles, and is not installed")
    rng = np.random.default_rng(dim)
    sides = []
    for size in (37, 53):
        vectors = rng.normal(size=(size, dim))
        if shape == "spiky":
            vectors[:, 0] += 30
        elif shape == "flat":  # the longest vectors that fit between their extents: what overflows first
            vectors = np.ones((size, dim)) * np.where(rng.random((size, 1)) < 0.5, -1, 1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if shape == "lengths":
            vectors *= np.exp(2 * rng.normal(size=(size, 1)))
        elif shape == "tiny":
            vectors *= 1e-12
        sides.append(vectors.astype(np.float32))
    rows, columns = sides
    lengths = norms(rows), norms(columns)
    truth = rows.astype(np.float64) @ columns.astype(np.float64).T
    made = [
        tiles.Float32(rows, lengths[0], lengths[1].max()),
        tiles.Int8(rows, lengths[0], tiles.extent(rows), lengths[1].max(), tiles.extent(columns)),
    ]
    for tile in made:
        found = tile.tile(slice(0, 37), tile.panel(columns), tile.room(37, 53))
        off = np.abs(found.astype(np.float64) - truth / tile.unit)
        assert (off <= tile.row_error[:, None]).all()
        assert (off <= tile.column_error(columns, lengths[1])).all()
    # And a bound that says nothing would be none: a fortieth of what the scores of such vectors spread over, at most.
    if shape == "normal" and dim >= 17:
        assert made[1].row_error.max() * made[1].unit < truth.std() / 20


def assert_kept(true, depth, error, found, ceiling) -> None:
    """What may be among the best of `true` (items, others) is kept, little else, and nothing left out is above."""
    for item, scores in enumerate(true):
        kept = set(found[item][found[item] >= 0].tolist())
        assert set(np.argsort(-scores)[:depth].tolist()) <= kept
        assert len(kept) < 40
        left = np.setdiff1d(np.arange(len(scores)), list(kept))
        assert scores[left].max() <= ceiling[item] < np.sort(scores)[-depth] + 3 * error + 2


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_best_keeps_what_may_be_best(dtype):
    """Against a list of everything: what is within the error of the depth-th best is kept, in whatever portions it
    comes, and nothing left out is above the ceiling."""
    rng = np.random.default_rng(9)
    items, depth, error = 6, 4, 30.0
    true = rng.normal(scale=1000, size=(items, 900))
    seen = (true + rng.uniform(-error, error, size=true.shape)).astype(dtype)
    best = Best(items, depth, np.full(items, error + 1), dtype, 900)
    for start in range(0, 900, 90):
        part = seen[:, start : start + 90]
        item, column = np.nonzero(part > best.cut[:, None])
        best.add(0, np.bincount(item, minlength=items), (column + start).astype(np.int32), part[item, column])
    found, ceiling = best.settle(slice(0, items))
    assert not best.full.any()
    assert_kept(true, depth, error, found, ceiling)


def test_best_that_is_full_proves_nothing():
    best = Best(2, 2, np.array([5.0, 5.0]), np.float32, 501)
    best.add(0, np.array([500, 1]), np.arange(501, dtype=np.int32), np.r_[np.ones(500), 7].astype(np.float32))
    found, ceiling = best.settle(slice(0, 2))
    assert ceiling.tolist() == [np.inf, -np.inf]
    assert (found[0] == -1).all()
    assert found[1][0] == 500


def test_scores_by_query_are_the_scores(problem):
    rng = np.random.default_rng(10)
    vectors = rng.normal(size=(300, 67)).astype(np.float32)
    queries = rng.normal(size=(40, 67)).astype(np.float32)
    queries[0], vectors[:20] = 0.25, rng.integers(-4, 5, size=(20, 67))  # exact sums, and zeros
    vectors[20:40] = -vectors[:20]
    queries[1] = 1e-22  # rounds to subnormal float32 scores, with a sign
    rows = rng.integers(0, 300, size=(40, 25))
    slow = similarities(queries, np.repeat(np.arange(40), 25), vectors, rows.ravel()).reshape(40, 25)
    fast = similarities_by_query(queries, vectors, rows, norms(queries), float(norms(vectors).max()), threads=2)
    assert np.array_equal(slow.view(np.int32), fast.view(np.int32))


def test_fewer_columns_than_the_depth_reach_nothing():
    assert exhaustive._reached(np.zeros((3, 4), np.float32), 5) is None
    tile = np.random.default_rng(11).normal(size=(5, 200))
    for depth in (1, 6, 90, 200):
        known = exhaustive._reached(tile, depth)
        assert known is not None
        assert ((tile >= known[:, None]).sum(1) >= depth).all()


SATURATING = """
import sys
import numpy as np
from miner import tiles
from miner.scores import norms
rng = np.random.default_rng(0)
rows, columns = (np.minimum(rng.exponential(size=(n, 512)), 1.5).astype("f4") for n in (300, 1200))
extents = [float(side.max()) for side in (rows, columns)]
made = tiles.fastest(rows, norms(rows), columns, float(norms(columns).max()), *extents)
found = made.tile(slice(0, 300), made.panel(columns), made.room(300, 1200)) * made.unit
off = np.abs(found - rows.astype("f8") @ columns.T.astype("f8")).max(1)
print(type(made).__name__, bool((off <= made.row_error * made.unit).all()), tiles._sound(512))
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "ALL"])
def test_a_machine_without_int8_products_does_without(instructions):
    """Older CPUs add products of int8 up in 16 bits, and torch does not say so; oneDNN can play such a one."""
    pytest.importorskip("torch", reason="torch makes these tiles, and is not installed")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SATURATING], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    kind, right, sound = done.stdout.split()
    assert right == "True"
    assert kind == "Float32" or sound == "True"


def test_what_cannot_be_compared_is_refused(problem):
    given = problem(images=6, dim=4)
    for images, texts, said in (
        (given.images[:, :3], given.texts, "images have dim 3 and texts dim 4"),
        (given.images[:5], given.texts, "shape \\(5, 4\\) for 6 images"),
        (given.images, given.texts.astype("f8"), "the text vectors have dtype float64"),
        (given.images * np.nan, given.texts, "holds NaN"),
        (given.images * np.float32(1e25), given.texts * np.float32(1e25), "so long"),
    ):
        with pytest.raises(BadInput, match=said):
            list(mine_exhaustively({"image": images, "text": texts}, given.pairs, ["i2t"], 2))
    for blocks in mined(type(given)(given.pairs, given.images * 0, given.texts), 2).values():
        assert (blocks.scores == 0).all()


def test_a_search_that_nobody_waits_for_stops(problem, monkeypatch):
    given = problem(seed=12, images=60)
    tiles_made = []
    search = exhaustive._take_columns
    monkeypatch.setattr(exhaustive, "_take_columns", lambda *a: (tiles_made.append(1), search(*a)))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mined(given, 3, tile=(4, 4), threads=2, progress=stop)
    assert len(tiles_made) < 15 * 45 / 2


@pytest.mark.parametrize("shape", ["normal", "spiky", "flat", "lengths", "tiny"])
def test_a_device_is_off_by_no_more_than_it_says(shape):
    """Against float64, though sums on tensor cores may be worse than these."""
    pytest.importorskip("torch", reason="torch makes these products, and is not installed")
    random = np.random.default_rng(0)
    rows, columns = (random.standard_normal((200, 300)).astype(np.float32) for _ in range(2))
    if shape == "spiky":
        rows[:, 7] *= 1000
    elif shape == "flat":
        rows[:] = 1 + 1e-4 * rows
        columns[:] = 1 + 1e-4 * columns
    elif shape == "lengths":
        rows *= np.logspace(-6, 6, 200, dtype=np.float32)[:, None]
    elif shape == "tiny":
        rows, columns = rows * np.float32(1e-30), columns * np.float32(1e-12)
    made = fused.Fused(rows, norms(rows), float(norms(columns).max()), fused.device() or "cpu")
    panel, moved = made.taken(columns)
    off = np.abs((made.rows @ panel.T).double().cpu().numpy() - rows.astype("f8") @ columns.astype("f8").T)
    assert (off <= made.row_error[:, None]).all()
    assert (off <= made.column_error(norms(columns), moved)).all()
    assert (moved > 0).any()
    rounded = made.rows.cpu().numpy()
    assert (rounded.view(np.int32) & 0x1FFF == 0).all()
    assert (np.abs(rounded - rows) <= 2.0**-11 * np.abs(rounded) + 1e-45).all()
    if shape == "normal":
        truth = rows.astype("f8") @ columns.astype("f8").T
        assert made.row_error.max() < truth.std() / 20


def on_a_device(items: int, depth: int, error: float, others: int):
    """A `fused._Best`, as it is made for the columns of a search."""
    torch = pytest.importorskip("torch", reason="torch keeps these lists, and is not installed")
    made = fused.Fused(np.ones((1, 1), np.float32), np.ones(1), 1.0, fused.device() or "cpu")
    return torch, fused._Best(made, items, depth, np.full(items, error), others)


@pytest.mark.parametrize("portion", [90, 900, 7])
def test_a_device_keeps_what_may_be_best(portion):
    """As above; the tile lies either way in memory, and begins in the middle of the items."""
    rng = np.random.default_rng(9)
    items, depth, error = 6, 4, 30.0
    true = rng.normal(scale=1000, size=(items, 900))
    seen = (true + rng.uniform(-error, error, size=true.shape)).astype(np.float32)
    torch, best = on_a_device(items, depth, error + 1, 900)
    for number, start in enumerate(range(0, 900, portion)):
        part = torch.from_numpy(seen[:, start : start + portion]).to(best.scores.device)
        part = part.T.contiguous().T if number % 2 else part.contiguous()
        best.take(0, part[:2], start)
        best.take(2, part[2:], start)
    found, ceiling = best.settle(slice(0, items))
    assert_kept(true, depth, error, found, ceiling)


def test_a_device_whose_list_is_full_proves_nothing():
    torch, best = on_a_device(2, 2, 5.0, 501)
    scores = torch.full((2, 501), -torch.inf)
    scores[0, :500], scores[1, 500] = 1.0, 7.0
    best.cut[:] = -100.0  # so that nothing is known of the depth-th best
    best.take(0, scores.to(best.scores.device), 0)
    found, ceiling = best.settle(slice(0, 2))
    assert ceiling.tolist() == [np.inf, -95.0]
    assert (found[0] == -1).all()
    assert found[1][0] == 500


def test_a_device_takes_ties_a_few_at_a_time(monkeypatch, problem, oracle):
    """Of a collapsed model everything is above the cut: it is halved until it is little, and nothing changes."""
    pytest.importorskip("torch", reason="torch keeps these lists, and is not installed")
    seen = []
    whole = fused._Best.take
    monkeypatch.setattr(fused, "_ABOVE", 64)
    monkeypatch.setattr(fused._Best, "take", lambda best, *given: (seen.append(given[1].shape), whole(best, *given)))
    monkeypatch.setitem(WHERE, "device", fused.device() or "cpu")
    given = problem(seed=12, images=50, dim=5)
    same = type(given)(given.pairs, np.ones_like(given.images), np.ones_like(given.texts))
    assert_same(same, oracle, 4, tile=(16, 32))
    assert min(width for _, width in seen) < 8


def test_a_device_without_memory_says_so():
    torch = pytest.importorskip("torch", reason="torch is what runs out of memory, and is not installed")
    made = fused.Fused(np.ones((3, 2), np.float32), np.full(3, 2**0.5), 2.0, fused.device() or "cpu")

    def full(proposal):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BadInput, match=r"the GPU has too little memory.*smaller --memory"):
        list(fused.search(made, 3, np.ones((5, 2), np.float32), 1, 1, full, full))
