"""Mining through an approximate index: against an oracle that compares everything, where the index finds everything,
too little or the wrong things; and the recall that is measured and chosen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from miner import index, recall
from miner.approximate import Deeper, Miner, mine_approximately
from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Draft, canonical_json
from miner.artifacts.negatives import NEGATIVES, NegativeBlock, NegativeTable, write_negatives
from miner.artifacts.pairs import Pairs, sides
from miner.artifacts.store import LocalStore
from miner.index import SearchSettings, _faiss, factory
from miner.nearest import mine
from miner.tuning import prepare, tune


@pytest.fixture(autouse=True)
def one_thread():
    before = _faiss.set_threads(None)
    _faiss.set_threads(1)
    yield
    _faiss.set_threads(before)


def built(gallery: np.ndarray, string: str) -> factory.Factory:
    return factory.build(gallery, factory.Config(string))


def mined(problem, direction, k: int, through, settings: SearchSettings, **how) -> NegativeBlock:
    vectors, gallery = problem.vectors(direction)
    blocks = mine_approximately(vectors, through, gallery, problem.pairs, direction, k, settings, **how)
    return NegativeBlock.join(list(blocks))


def exactly(problem, direction, k: int) -> NegativeBlock:
    vectors, gallery = problem.vectors(direction)
    return NegativeBlock.join(list(mine(vectors, index.build("flat", gallery), gallery, problem.pairs, direction, k)))


def same(one: NegativeBlock, other: NegativeBlock) -> bool:
    arrays = ("anchor_rows", "negatives", "scores", "lowest_positive")
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in arrays)


EVERYTHING = {
    "Flat": SearchSettings(),
    "IVF8,Flat": SearchSettings(nprobe=8),
    "IVF8,SQ8": SearchSettings(nprobe=8, k_factor=64),
    "IVF8,PQ8x4fs": SearchSettings(nprobe=8, k_factor=64),
    "IVF8,PQ8x4fs,RFlat": SearchSettings(nprobe=8, k_factor=64),
    "PCA8,IVF8,SQ8": SearchSettings(nprobe=8, k_factor=64),
    "HNSW16": SearchSettings(ef_search=500),
}


@pytest.mark.parametrize("string", EVERYTHING)
@pytest.mark.parametrize("direction", ["i2t", "t2i", "i2i", "t2t"])
@pytest.mark.parametrize("grid", [False, True])
def test_where_the_index_finds_everything_the_table_is_exact(problem, string, direction, grid):
    """Also with ties and duplicates (`grid`), which are ordered by id."""
    given = problem(images=60, grid=grid)
    through = built(given.vectors(direction)[1] if direction in ("i2t", "t2i") else own_side(given, direction), string)
    made = through_both(given, direction, 7, through, EVERYTHING[string])
    if string == "HNSW16" and grid:  # a graph may lose the way among duplicates
        assert (made[0].negatives == made[1].negatives).mean() > 0.9
    else:
        assert same(*made)
        assert made[0].reasons == made[1].reasons


def own_side(given, direction):
    return given.images if direction[0] == "i" else given.texts


def through_both(given, direction, k, through, settings):
    side = {"image": given.images, "text": given.texts}
    anchors, gallery = (side[name] for name in sides(direction))
    found = mine_approximately(anchors, through, gallery, given.pairs, direction, k, settings)
    truth = mine(anchors, index.build("flat", gallery), gallery, given.pairs, direction, k)
    return NegativeBlock.join(list(found)), NegativeBlock.join(list(truth))


def test_negatives_are_the_oracle_s(problem, oracle):
    given = problem()
    block = mined(given, "i2t", 7, built(given.texts, "IVF4,Flat"), SearchSettings(nprobe=4))
    for at, anchor in enumerate(block.anchor_rows.tolist()):
        rows, scores, lowest = oracle(given, "i2t", 7)[anchor]
        assert (block.negatives[at].tolist(), block.scores[at].tolist()) == (rows, scores)
        assert block.lowest_positive[at] == np.float32(lowest)


@pytest.mark.parametrize("string", ["IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8x4fs", "HNSW8,SQ8"])
def test_neither_block_nor_threads_nor_the_order_of_rows_matter(problem, string):
    given = problem(images=150)
    through = built(given.texts, string)
    settings = SearchSettings(**{name: {"nprobe": 3, "ef_search": 8, "k_factor": 2}[name] for name in through.knobs})
    whole = mined(given, "i2t", 9, through, settings)
    for how in ({"block": 40}, {"threads": 3}, {"block": 64, "threads": 2}):
        again = mined(given, "i2t", 9, through, settings, **how)
        assert same(again, whole)
        assert again.reasons == whole.reasons


def test_many_positives_and_no_negatives_at_all(problem):
    """One text belongs to every image; one image to all texts, so that it has no negative."""
    rng = np.random.default_rng(0)
    images, texts = 30, 400
    links = {(0, text) for text in range(texts)} | {(image, 0) for image in range(images)}
    links |= {(1, text) for text in range(250)}
    pairs = Pairs(
        tuple(f"{row:03}" for row in range(images)),
        tuple(f"{row:03}" for row in range(texts)),
        *np.array(sorted(links)).T,
    )
    given = type(problem())(pairs, *(rng.normal(size=(rows, 8)).astype("f4") for rows in (images, texts)))
    through = built(given.texts, "IVF4,Flat")
    miner = Miner(through, given.texts, pairs, "i2t", 20, SearchSettings(nprobe=4))
    block = NegativeBlock.join(list(miner.blocks(given.images)))
    truth = exactly(given, "i2t", 20)
    assert same(block, truth)
    assert block.reasons == truth.reasons == {0: "400 of the 400 texts are its positives"}
    assert miner.depth < 100  # most anchors have one positive
    assert (miner.deeper, miner.short) == (1, 0)  # the one with 250 is searched again
    found = recall.measure(miner, given.images, recall.truth(miner, given.images, np.arange(images)))
    assert (found.mean, found.anchors) == (1.0, images - 1)


def test_few_lists_give_shortfalls_with_a_reason_and_the_table_takes_them(problem, tmp_path):
    given = problem(images=300)
    k = 150
    miner = Miner(built(given.texts, "IVF64,Flat"), given.texts, given.pairs, "i2t", k, SearchSettings(nprobe=1))
    block = NegativeBlock.join(list(miner.blocks(given.images)))
    found = (block.negatives >= 0).sum(1)
    assert 0 < (found < k).sum() == miner.short == len(block.reasons)
    assert miner.deeper >= miner.short
    for row, reason in block.reasons.items():
        place = int(np.flatnonzero(block.anchor_rows == row)[0])
        assert reason.startswith(f"the approximate index IVF64,Flat found {found[place]} of {k} at nprobe 1")
    assert (np.isnan(block.scores) == (block.negatives < 0)).all()
    assert (block.negatives[:, 1:][block.negatives[:, :-1] < 0] == -1).all()  # holes at the end only
    own = set(zip(given.pairs.image_rows.tolist(), given.pairs.text_rows.tolist(), strict=True))
    for anchor, rows in zip(block.anchor_rows.tolist(), block.negatives.tolist(), strict=True):
        kept = [row for row in rows if row >= 0]
        assert len(set(kept)) == len(kept)
        assert not own & {(anchor, row) for row in kept}
    draft = Draft(LocalStore(tmp_path), "i2t", NEGATIVES, {})
    write_negatives(draft, [block], given.pairs, "i2t", k, {"index": "factory"})
    table = NegativeTable.open(tmp_path / "i2t", given.pairs)
    assert np.array_equal(table.negatives[block.anchor_rows], block.negatives)


def deepened(given, direction, width: int, through, settings: SearchSettings, folder) -> tuple[Deeper, Candidates]:
    """What searches on behind the `width` candidates of every anchor."""
    side = {"image": given.images, "text": given.texts}
    anchors, gallery = (side[name] for name in sides(direction))
    miner = Miner(through, gallery, given.pairs, direction, width, settings)
    draft = Draft(LocalStore(folder), direction, CANDIDATES, {})
    for _ in write_candidates(draft, miner.blocks(anchors), given.pairs, direction, width, {}):
        pass
    candidates = Candidates.open(folder / direction, given.pairs)
    return Deeper(miner, anchors, candidates), candidates


@pytest.mark.parametrize("direction", ["i2t", "t2i", "t2t"])
def test_deeper_through_an_index_that_finds_everything_is_exact(problem, direction, tmp_path):
    given = problem(images=60)
    gallery = {"i": given.images, "t": given.texts}[direction[-1]]
    deeper, _ = deepened(given, direction, 5, built(gallery, "IVF8,Flat"), SearchSettings(nprobe=8), tmp_path)
    rows = given.pairs.order(sides(direction)[0])[3:30]
    for depth in (20, 33, len(gallery)):
        found = deeper(rows, depth)
        anchors = {"i": given.images, "t": given.texts}[direction[0]]
        truth = NegativeBlock.join(
            list(mine(anchors, index.build("flat", gallery), gallery, given.pairs, direction, depth))
        ).cut(3, 30)
        assert same(found, truth)


@pytest.mark.parametrize("string", ["IVF16,Flat", "IVF16,PQ8x4fs"])
def test_a_list_only_grows_deeper(problem, string, tmp_path):
    """Also where what should have been among the candidates was missed: in order, each once, none a positive."""
    given = problem(images=150)
    through = built(given.texts, string)
    settings = SearchSettings(nprobe=1, k_factor=1 if "k_factor" in through.knobs else None)
    deeper, candidates = deepened(given, "i2t", 6, through, settings, tmp_path)
    rows = given.pairs.order("image")
    lists = [candidates.at(np.arange(len(rows))), *(deeper(rows, depth) for depth in (24, 96, 300))]
    truth = exactly(given, "i2t", 6)
    missed = (lists[1].negatives[:, :6] != truth.negatives).any(1)
    assert missed.sum() > 20
    place, size = given.pairs.places("text"), len(given.texts)
    own = set(zip(given.pairs.image_rows.tolist(), given.pairs.text_rows.tolist(), strict=True))
    for shorter, longer in itertools.pairwise(lists):
        width = shorter.negatives.shape[1]
        assert np.array_equal(longer.negatives[:, :width], shorter.negatives)
        assert longer.scores[:, :width].tobytes() == shorter.scores.tobytes()
    for anchor, found, scores in zip(rows.tolist(), lists[-1].negatives, lists[-1].scores, strict=True):
        kept = found[found >= 0]
        assert (found[len(kept) :] == -1).all()
        assert len(set(kept.tolist())) == len(kept)
        assert not own & {(anchor, row) for row in kept.tolist()}
        assert (np.lexsort((place[kept], -scores[: len(kept)])) == np.arange(len(kept))).all()
    # Whoever can be filled is: with four times the effort each time, most lists are looked into at last.
    assert (lists[2].negatives >= 0).all(1).mean() > 0.9
    assert size > 300
    some = rows[17:23]
    parts = NegativeBlock.join([deeper(some[:2], 96), deeper(some[2:], 96)])
    assert np.array_equal(parts.negatives, lists[2].negatives[17:23])


class Broken:
    """An index that returns empty slots anywhere: every other result is lost."""

    def __init__(self, real: factory.Factory) -> None:
        self.real = real

    def __getattr__(self, name: str):
        return getattr(self.real, name)

    def search(self, queries, depth):
        scores, rows = self.real.search(queries, depth)
        scores[:, ::2], rows[:, ::2] = -np.inf, -1
        return scores, rows


def test_empty_slots_are_never_read_as_the_last_row(problem):
    given = problem(images=60)
    block = mined(given, "i2t", 10, Broken(built(given.texts, "Flat")), SearchSettings())
    truth = exactly(given, "i2t", len(given.texts))
    for at in range(len(block)):
        allowed = set(truth.negatives[at].tolist()) - {-1}
        assert set(block.negatives[at].tolist()) - {-1} <= allowed
    nothing = Broken(built(given.texts, "Flat"))
    nothing.search = lambda queries, depth: (
        np.full((len(queries), depth), -np.inf, "f4"),
        np.full((len(queries), depth), -1),
    )
    block = mined(given, "i2t", 10, nothing, SearchSettings())
    assert (block.negatives == -1).all()
    assert len(block.reasons) == len(given.images)


@pytest.mark.parametrize(("images", "k"), [(1, 1), (2, 1), (3, 2), (37, 30), (37, 37)])
@pytest.mark.parametrize("string", ["IVF1,Flat", "HNSW4", "SQ8", "auto"])
def test_odd_sizes(images, k, string):
    rng = np.random.default_rng(images)
    rows = np.arange(images)
    ids = tuple(f"{row:02}" for row in rows)
    pairs = Pairs(ids, ids, rows, rows)
    vectors, gallery = (rng.normal(size=(images, 6)).astype("f4") for _ in range(2))
    through = built(gallery, string)
    miner = Miner(through, gallery, pairs, "i2t", k)
    tuned = tune(miner, vectors, 0.9, size=10)
    assert tuned.reached
    assert canonical_json(tuned.stored())  # numbers, also where there is nothing to measure
    assert ("no anchor" in str(tuned.report)) == (images == 1)
    block = NegativeBlock.join(list(miner.blocks(vectors)))
    truth = NegativeBlock.join(list(mine(vectors, index.build("flat", gallery), gallery, pairs, "i2t", k)))
    found = (block.negatives >= 0).sum(1)
    assert set(block.anchor_rows[found < k].tolist()) == block.reasons.keys()
    if string.startswith("HNSW"):  # no way in a graph of inner products leads to some short vectors
        assert (found >= 0.8 * min(k, images - 1)).all()
        assert images == 1 or np.nanmean(recall.shares_found(block, truth, k)) > 0.9
    else:
        assert (found == min(k, images - 1)).all()
        assert block.reasons == truth.reasons
        assert same(block, truth) or (string == "SQ8" and k < images - 1)


def slow_recall(block: NegativeBlock, given, direction: str, k: int) -> list[float]:
    """One anchor and one negative at a time, from the definition."""
    vectors, gallery = given.vectors(direction)
    own = set(zip(given.pairs.image_rows.tolist(), given.pairs.text_rows.tolist(), strict=True))
    shares = []
    for anchor, rows in zip(block.anchor_rows.tolist(), block.negatives.tolist(), strict=True):
        scores = {}
        for row in range(len(gallery)):
            if ((anchor, row) if direction == "i2t" else (row, anchor)) not in own:
                product = vectors[anchor].astype("f8") * gallery[row].astype("f8")
                scores[row] = float(np.float32(math.fsum(product.tolist())))
        last = sorted(scores.values(), reverse=True)[:k][-1]
        wanted = min(k, len(scores))
        shares.append(sum(scores[row] >= last for row in rows[:k] if row >= 0) / wanted)
    return shares


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(("string", "nprobe"), [("IVF16,Flat", 1), ("IVF16,Flat", 3), ("IVF16,PQ8x4fs", 2)])
def test_recall_is_that_of_a_slow_loop(problem, string, nprobe, grid):
    given = problem(images=80, grid=grid)
    for direction in ("i2t", "t2i"):
        vectors, gallery = given.vectors(direction)
        through = built(gallery, string)
        settings = SearchSettings(nprobe=nprobe, k_factor=1 if "k_factor" in through.knobs else None)
        miner = Miner(through, gallery, given.pairs, direction, 12, settings)
        sample, _ = recall.sample_anchors(miner, 25, 0)
        exact = recall.truth(miner, vectors, sample)
        whole = exactly(given, direction, 12)
        places = [int(np.flatnonzero(whole.anchor_rows == row)[0]) for row in sample]
        assert np.array_equal(exact.negatives, whole.negatives[places])
        found = miner.block(vectors[sample], sample)
        measured = recall.measure(miner, vectors, exact)
        assert np.allclose(recall.shares_found(found, exact, 12), slow_recall(found, given, direction, 12))
        assert measured.mean == pytest.approx(np.mean(slow_recall(found, given, direction, 12)), abs=1e-6)
        assert measured.at["1"] == pytest.approx(np.mean(slow_recall(found, given, direction, 1)), abs=1e-6)
        assert measured.anchors == 25
        assert measured.low <= measured.mean <= measured.high
        assert measured.stored()["recall"]["12"] == measured.mean


def test_samples_are_disjoint_and_do_not_depend_on_the_order_of_rows(problem):
    given = problem(images=90)
    other = given.permuted(1)
    samples = []
    for each in (given, other):
        miner = Miner(built(each.texts, "Flat"), each.texts, each.pairs, "i2t", 5)
        first, second = recall.sample_anchors(miner, 30, 7)
        assert not set(first.tolist()) & set(second.tolist())
        samples.append([sorted(each.pairs.image_ids[row] for row in rows) for rows in (first, second)])
        halves = recall.sample_anchors(miner, 1000, 7)
        assert [len(half) for half in halves] == [45, 45]
    assert samples[0] == samples[1]


def test_the_interval_holds_what_it_should():
    assert recall.mean_of_shares(np.array([np.nan, np.nan]), 5)[0] != recall.mean_of_shares(np.array([1.0]), 5)[0]
    mean, low, high = recall.mean_of_shares(np.ones(100), 50)
    assert (mean, high) == (1.0, 1.0)
    assert 0.95 < low < 0.97  # all of 100 found does not mean that all will be
    one = recall.mean_of_shares(np.array([0.5]), 10)
    assert one[1] < 0.2
    assert one[2] > 0.8
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        truths = rng.beta(19, 1, size=200)  # recall differs by anchor
        shares = rng.binomial(50, truths) / 50
        _, low, high = recall.mean_of_shares(shares, 50)
        covered += low <= 0.95 <= high
    assert 0.92 < covered / 300 < 0.98


def spread(rows: int = 3000, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Images and texts, one to one, in clusters that overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, dim))
    images = centres[rng.integers(60, size=rows)] + rng.normal(size=(rows, dim)) * 0.8
    texts = images + rng.normal(size=(rows, dim)) * 0.6
    ids = tuple(f"{row:05}" for row in range(rows))
    return images.astype("f4"), texts.astype("f4"), Pairs(ids, ids, np.arange(rows), np.arange(rows))


@pytest.mark.parametrize("string", ["IVF64,Flat", "IVF64,SQ8", "IVF32,PQ16x4fs", "IVF32,PQ16x4fs,RFlat", "HNSW8"])
def test_tuning_reaches_a_recall_with_little_effort(string):
    images, texts, pairs = spread()
    miner = Miner(built(texts, string), texts, pairs, "i2t", 20)
    steps: list[SearchSettings] = []
    tuned = tune(miner, images, 0.9, size=300, tried=lambda settings, _: steps.append(settings))
    assert tuned.reached
    assert tuned.report.mean >= 0.9
    assert tuned.settings == miner.settings
    assert steps == [settings for settings, _ in tuned.tried]
    assert len(steps) == len(set(steps))
    effort = "ef_search" if string.startswith("HNSW") else "nprobe"
    least = getattr(tuned.settings, effort)
    assert least < miner.index.knobs[effort] / 2
    stored = tuned.stored()
    assert stored["requested"] == 0.9
    assert stored["reached"] is True
    assert stored["recall"]["20"] == tuned.report.mean
    again = Miner(built(texts, string), texts, pairs, "i2t", 20)
    assert tune(again, images, 0.9, size=300).stored() == stored
    lower = tune(again, images, 0.5, size=300)
    assert getattr(lower.settings, effort) <= least
    if string == "IVF64,Flat":  # the least: one less is not enough
        assert least > 1
        exact = recall.truth(miner, images, recall.sample_anchors(miner, 300, 0)[0])
        miner.settings = SearchSettings(nprobe=least - 1)
        below = recall.measure(miner, images, exact)
        assert below.mean - math.sqrt(2) * (below.mean - below.low) < 0.9


def test_tuning_says_when_a_recall_is_out_of_reach():
    """Codes of four bits per eight numbers tell hardly anything apart, and k_factor ends at 64."""
    images, texts, pairs = spread(dim=32)
    miner = Miner(built(texts, "PQ2x4fs"), texts, pairs, "i2t", 5)
    tuned = tune(miner, images, 0.999, size=200)
    assert not tuned.reached
    assert tuned.report.mean < 0.999
    assert tuned.stored()["reached"] is False
    assert tuned.settings.k_factor == 64
    for wrong in (0, 1, 1.5, -1):
        with pytest.raises(BadInput, match="less than 1"):
            tune(miner, images, wrong)


def test_what_is_measured_is_what_the_table_says():
    images, texts, pairs = spread()
    through = built(texts, "IVF64,SQ8")
    miner = Miner(through, texts, pairs, "i2t", 20, SearchSettings(nprobe=4))
    provenance, sentence = prepare(miner, images, None, size=300)
    assert provenance["factory"] == "IVF64,SQ8"
    assert provenance["search"] == {"nprobe": 4, "k_factor": through.settings.k_factor}
    assert provenance["recall"]["anchors"] == 300
    assert "requested" not in provenance["recall"]
    block = NegativeBlock.join(list(miner.blocks(images)))
    truth = recall.truth(miner, images, block.anchor_rows)
    everywhere = recall.shares_found(block, truth, 20).mean()
    assert provenance["recall"]["interval"][0] <= everywhere <= provenance["recall"]["interval"][1]
    assert f"recall@20 {provenance['recall']['recall']['20']:.4f}" in sentence
    assert "nprobe=4" in sentence
    tuned, sentence = prepare(miner, images, 0.9, size=300)
    assert tuned["recall"]["requested"] == 0.9
    assert tuned["search"] == miner.settings.chosen()
    assert "0.9 was asked for" in sentence
    assert "not to be had" not in sentence
    assert "mine without one" not in sentence
    noise = np.random.default_rng(0).normal(size=(3000, 64)).astype("f4")
    hopeless = Miner(built(noise, "IVF64,Flat"), noise, pairs, "i2t", 20)
    _, sentence = prepare(hopeless, noise[::-1], 0.95, size=100)
    assert "as much work as an exact search" in sentence
    coarse = Miner(built(texts, "PQ2x4fs"), texts, pairs, "i2t", 20)
    _, sentence = prepare(coarse, images, 0.9999, size=100)
    assert "not to be had from this index" in sentence


def test_refusals(problem):
    given = problem()
    through = built(given.texts, "IVF4,Flat")
    with pytest.raises(BadInput, match="larger than the gallery"):
        mine_approximately(given.images, through, given.texts, given.pairs, "i2t", len(given.texts) + 1)
    with pytest.raises(BadInput, match="build the index from these"):
        mine_approximately(given.images, built(given.texts[1:], "Flat"), given.texts, given.pairs, "i2t", 3)
    with pytest.raises(BadInput, match="give one each"):
        mine_approximately(given.images[1:], through, given.texts, given.pairs, "i2t", 3)
    with pytest.raises(BadInput, match="no ef_search; it takes nprobe"):
        mine_approximately(given.images, through, given.texts, given.pairs, "i2t", 3, SearchSettings(ef_search=9))
    with pytest.raises(BadInput, match="one model"):
        list(mine_approximately(given.images[:, 1:], through, given.texts, given.pairs, "i2t", 3))
    on_gpu = Broken(through)
    on_gpu.max_depth, on_gpu.device = 10, "gpu"
    with pytest.raises(BadInput, match="returns 10 at most"):
        Miner(on_gpu, given.texts, given.pairs, "i2t", 20)


def test_progress_reaches_the_end(problem):
    given = problem()
    seen: list[tuple[int, int]] = []
    through = built(given.texts, "IVF4,Flat")
    mined(given, "i2t", 3, through, SearchSettings(nprobe=2), block=16, progress=lambda *at: seen.append(at))
    assert seen == [(16, 40), (32, 40), (40, 40)]
