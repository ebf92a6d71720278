"""Mining against the slow oracle: the same ids and the same scores, whatever the block, the threads or the index."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner import index
from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Pairs
from miner.index._faiss import set_threads
from miner.nearest import mine, mine_block
from miner.scores import norms, similarities, unit
from miner.search import Gallery, Searcher


def mined(problem, direction, k, **how) -> NegativeBlock:
    vectors, gallery = problem.vectors(direction)
    return NegativeBlock.join(
        list(mine(vectors, index.build("flat", gallery), gallery, problem.pairs, direction, k, **how))
    )


def assert_same(block: NegativeBlock, expected, k: int) -> None:
    assert sorted(block.anchor_rows.tolist()) == sorted(expected)
    for at, row in enumerate(block.anchor_rows.tolist()):
        rows, scores, lowest = expected[row]
        assert block.negatives[at].tolist() == rows + [-1] * (k - len(rows))
        assert block.scores[at, : len(rows)].tolist() == scores
        assert np.isnan(block.scores[at, len(rows) :]).all()
        assert float(block.lowest_positive[at]) == lowest
        assert (row in block.reasons) == (len(rows) < k)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize(("dtype", "grid"), [("f4", False), ("f2", False), ("f4", True), ("f2", True)])
def test_equals_the_oracle(problem, oracle, direction, dtype, grid):
    given_problem = problem(seed=1, dtype=dtype, grid=grid)
    gallery = len(given_problem.vectors(direction)[1])
    for k in (1, 7, 20, gallery - 2, gallery):
        assert_same(mined(given_problem, direction, k), oracle(given_problem, direction, k), k)


@pytest.mark.parametrize(("block", "threads"), [(1, 1), (3, 2), (17, 1), (1000, 3)])
@pytest.mark.parametrize("grid", [False, True])
def test_block_and_threads_change_nothing(problem, oracle, block, threads, grid):
    given_problem = problem(seed=2, images=60, grid=grid)
    set_threads(threads)
    assert_same(mined(given_problem, "i2t", 11, block=block, threads=threads), oracle(given_problem, "i2t", 11), 11)
    set_threads(1)


def test_long_vectors_in_a_larger_gallery(problem, oracle):
    """Deep enough that the candidates are a small part of the gallery, in a dim that is not a power of two."""
    given_problem = problem(seed=3, images=150, dim=203)
    assert_same(mined(given_problem, "t2i", 9), oracle(given_problem, "t2i", 9), 9)
    assert_same(mined(given_problem, "i2t", 9), oracle(given_problem, "i2t", 9), 9)


def test_near_ties_that_float32_cannot_order(problem, oracle):
    """Scores that differ by less than a float32 product's rounding: candidates alone would order them wrongly."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=24).astype(np.float32)
    given_problem = problem(seed=4, images=50, dim=24)
    nudged = (base + rng.normal(scale=3e-7, size=given_problem.texts.shape)).astype(np.float32)
    close = type(given_problem)(given_problem.pairs, given_problem.images, nudged)
    assert_same(mined(close, "i2t", 5), oracle(close, "i2t", 5), 5)


def test_a_gallery_of_one_vector_is_ordered_by_id(problem):
    given_problem = problem(seed=5, images=80)
    same = type(given_problem)(given_problem.pairs, given_problem.images, np.ones_like(given_problem.texts))
    block = mined(same, "i2t", 6)
    order = given_problem.pairs.order("text").tolist()
    offsets, positives = given_problem.pairs.positives("image")
    for at, row in enumerate(block.anchor_rows):
        own = set(positives[offsets[row] : offsets[row + 1]].tolist())
        assert block.negatives[at].tolist() == [text for text in order if text not in own][:6]


def test_one_anchor_with_very_many_positives(oracle, problem):
    rng = np.random.default_rng(6)
    links = [(0, text) for text in range(190)] + [(image, 190 + image) for image in range(1, 30)]
    pairs = Pairs(tuple(f"i{i}" for i in range(30)), tuple(map(str, range(220))), *np.array([*links, (1, 190)]).T)
    many = type(problem())(pairs, rng.normal(size=(30, 8)).astype("f4"), rng.normal(size=(220, 8)).astype("f4"))
    for k in (5, 30, 31):
        assert_same(mined(many, "i2t", k), oracle(many, "i2t", k), k)


class Watched:
    """A flat index that notes how deep it was asked, and may round the queries first, as half precision would."""

    def __init__(self, real: index.Index, coarse: bool = False) -> None:
        self.real, self.coarse, self.depths = real, coarse, []

    def __getattr__(self, name: str):
        return getattr(self.real, name)

    def search(self, queries, depth):
        self.depths.append(depth)
        return self.real.search(np.sign(queries) if self.coarse else queries, depth)


def test_an_index_that_rounds_badly_is_found_out(problem, oracle):
    given_problem = problem(seed=7, images=120)
    vectors, gallery = given_problem.vectors("i2t")
    coarse = Watched(index.build("flat", gallery), coarse=True)
    block = NegativeBlock.join(list(mine(vectors, coarse, gallery, given_problem.pairs, "i2t", 15)))
    assert_same(block, oracle(given_problem, "i2t", 15), 15)


def test_one_search_proves_ordinary_vectors(problem):
    given_problem = problem(seed=11, images=120)
    vectors, gallery = given_problem.vectors("i2t")
    watched = Watched(index.build("flat", gallery))
    list(mine(vectors, watched, gallery, given_problem.pairs, "i2t", 5))
    assert len(watched.depths) == 1
    assert watched.depths[0] < len(gallery) / 4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_small_problem(oracle, problem, data):
    images, texts, dim = (data.draw(st.integers(1, 7)) for _ in range(3))
    links = {(data.draw(st.integers(0, images - 1)), text) for text in range(texts)}
    links |= {(image, data.draw(st.integers(0, texts - 1))) for image in range(images)}
    cells = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
    sides = [np.array([[data.draw(cells) for _ in range(dim)] for _ in range(rows)]) for rows in (images, texts)]
    names = data.draw(st.permutations(["b", "a", "10", "9", "Z", "é", "1"]))
    pairs = Pairs(tuple(names[:images]), tuple(names[::-1][:texts]), *np.array(sorted(links)).T)
    small = type(problem())(pairs, sides[0].astype("f4"), sides[1].astype("f4"))
    for direction in ("i2t", "t2i"):
        k = data.draw(st.integers(1, len(small.vectors(direction)[1])))
        assert_same(mined(small, direction, k), oracle(small, direction, k), k)


def test_a_subset_of_anchors_is_the_same_as_the_whole(problem):
    given_problem = problem(seed=8)
    vectors, gallery = given_problem.vectors("t2i")
    whole = mined(given_problem, "t2i", 6)
    some = whole.anchor_rows[[2, 3, 30]]
    part = mine_block(vectors[some], index.build("flat", gallery), gallery, given_problem.pairs, "t2i", 6, some)
    assert np.array_equal(part.negatives, whole.negatives[[2, 3, 30]])
    assert part.scores.tobytes() == whole.scores[[2, 3, 30]].tobytes()


def test_progress_reaches_the_end(problem):
    seen: list[tuple[int, int]] = []
    given_problem = problem()
    mined(given_problem, "i2t", 3, block=16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_refusals(problem):
    given_problem = problem()
    vectors, gallery = given_problem.vectors("i2t")
    built = index.build("flat", gallery)
    pairs = given_problem.pairs
    with pytest.raises(BadInput, match="larger than the gallery"):
        mine(vectors, built, gallery, pairs, "i2t", len(gallery) + 1)
    with pytest.raises(BadInput, match="at least 1"):
        mine(vectors, built, gallery, pairs, "i2t", 0)
    with pytest.raises(BadInput, match="give one each"):
        mine(vectors[:-1], built, gallery, pairs, "i2t", 3)
    with pytest.raises(BadInput, match="float64"):
        mine(vectors, built, gallery.astype("f8"), pairs, "i2t", 3)
    with pytest.raises(BadInput, match="one model"):
        list(mine(vectors[:, :-1], built, gallery, pairs, "i2t", 3))
    with pytest.raises(BadInput, match="build the index from these"):
        list(mine(vectors, index.build("flat", gallery[:-1]), gallery, pairs, "i2t", 3))
    with pytest.raises(BadInput, match="overflows"):
        list(
            mine(
                vectors * np.float32(1e30),
                index.build("flat", gallery * np.float32(1e30)),
                gallery * np.float32(1e30),
                pairs,
                "i2t",
                3,
            )
        )
    with pytest.raises(BadInput, match="flat"):
        index.build("flatt", gallery)


def test_the_score_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(9)
    queries, gallery = rng.normal(size=(9, 77)).astype("f4"), rng.normal(size=(4000, 77)).astype("f4")
    rows = np.arange(4000)
    together = similarities(queries, rows % 9, gallery, rows, threads=3)
    alone = [similarities(queries, rows[r : r + 1] % 9, gallery, rows[r : r + 1])[0] for r in range(0, 4000, 97)]
    assert together[::97].tolist() == [float(score) for score in alone]
    exact = (queries.astype("f8")[rows % 9] * gallery.astype("f8")).sum(1)
    assert np.allclose(together, exact, rtol=1e-6)


def test_unit_vectors_have_length_one():
    vectors = np.random.default_rng(10).normal(size=(50, 33)).astype("f2") * np.float16(100)
    assert np.abs(norms(unit(vectors)) - 1).max() < 1e-6
    assert np.allclose(norms(vectors), np.linalg.norm(vectors.astype("f8"), axis=1), rtol=1e-12)


def test_index_survives_a_round_trip(problem):
    gallery = problem().texts
    built = index.build("flat", gallery)
    again = index.flat.loads(built.dumps())
    assert (again.size, again.dim, again.exact) == (*gallery.shape, True)
    assert again.max_norm == pytest.approx(np.linalg.norm(gallery, axis=1).max(), rel=1e-6)
    assert isinstance(Searcher(again, Gallery(gallery, np.arange(len(gallery)), again.max_norm)), Searcher)
    other = faiss.serialize_index(faiss.IndexHNSWFlat(4, 4))
    with pytest.raises(BadInput, match="IndexHNSWFlat"):
        index.flat.loads(bytes(other))
