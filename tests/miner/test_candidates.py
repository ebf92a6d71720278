"""Candidates on disk: what is written is what is read, and nothing else is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from miner import index
from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Draft, open_artifact
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.store import LocalStore
from miner.nearest import mine
from tests.miner.filters_oracle import ranking, searched, selected, selection

N = 7


def blocks_of(problem, direction, num, step=9):
    vectors, gallery = problem.vectors(direction)
    return list(mine(vectors, index.build("flat", gallery), gallery, problem.pairs, direction, num, block=step))


def write(folder, problem, direction, num, blocks):
    draft = Draft(LocalStore(folder), "c", CANDIDATES, {})
    passed = list(write_candidates(draft, blocks, problem.pairs, direction, num, {"metric": "ip"}))
    return passed, folder / "c"


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_what_is_written_is_what_was_found(problem, oracle, tmp_path, direction):
    given = problem(seed=1)
    full = ranking(given, oracle, direction)
    blocks = blocks_of(given, direction, N)
    passed, folder = write(tmp_path, given, direction, N, blocks)
    assert passed == blocks
    read = Candidates.open(folder, given.pairs)
    assert (read.direction, read.num_candidates, len(read)) == (direction, N, len(full))
    for step in (1, 9, 4096):
        whole = NegativeBlock.join(list(read.blocks(step)))
        for at, row in enumerate(whole.anchor_rows.tolist()):
            found, lowest = full[row]
            assert whole.negatives[at].tolist() == [g for g, _ in found[:N]]
            assert whole.scores[at].tolist() == [s for _, s in found[:N]]
            assert float(whole.lowest_positive[at]) == lowest


def test_short_rows_and_the_order_of_storage(problem, oracle, tmp_path):
    """More candidates than exist for some: -1 and nan; and the same bytes however the items are stored."""
    given = problem(seed=2, images=8)
    size = len(given.texts)
    _, folder = write(tmp_path / "a", given, "i2t", size, blocks_of(given, "i2t", size))
    block = NegativeBlock.join(list(Candidates.open(folder, given.pairs).blocks()))
    own = np.diff(given.pairs.positives("image")[0])[block.anchor_rows]
    assert ((block.negatives >= 0).sum(1) == size - own).all()
    assert np.array_equal(np.isnan(block.scores), block.negatives < 0)
    turned = given.permuted(3)
    _, other = write(tmp_path / "b", turned, "i2t", size, blocks_of(turned, "i2t", size, step=3))
    for name in ("candidates.npy", "scores.npy", "lowest_positive.npy", "manifest.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    again = NegativeBlock.join(list(Candidates.open(folder, turned.pairs).blocks()))
    full = ranking(turned, oracle, "i2t")
    for at, row in enumerate(again.anchor_rows.tolist()):
        found = full[row][0]
        assert again.negatives[at].tolist() == [g for g, _ in found] + [-1] * (size - len(found))


def test_one_side_with_itself_has_anchors_without_a_positive(problem, tmp_path):
    """i2i: an image whose texts belong to no other image has no positive, and margins drop nothing there."""
    given = problem(seed=3)
    found = mine(given.images, index.build("flat", given.images), given.images, given.pairs, "i2i", N)
    _, folder = write(tmp_path, given, "i2i", N, found)
    read = Candidates.open(folder, given.pairs)
    lonely = np.isnan(read.lowest_positive)
    assert 0 < lonely.sum() < len(read)
    negatives, dropped, _ = selected(selection(given, read, ["absolute-margin:margin=100"], 3))
    for at, row in enumerate(read.order.tolist()):
        assert bool(dropped[row]) != lonely[at]
        assert len(negatives[row]) == (3 if lonely[at] else 0)
    by_vectors, _, _ = selected(selection(given, read, ["look-alike", "near-embedding", "agreement:within=3"], 3))
    assert sorted(by_vectors) == list(range(40))


def test_wrong_blocks_are_refused_and_nothing_is_left(problem, tmp_path):
    given = problem(seed=4)
    blocks = blocks_of(given, "i2t", N)
    for score in (np.nan, -np.inf, np.inf):
        scores = blocks[0].scores.copy()
        scores[2, 3] = score
        with pytest.raises(BadInput, match="not a finite number"):
            write(tmp_path, given, "i2t", N, [dataclasses.replace(blocks[0], scores=scores), *blocks[1:]])
    for wrong in (blocks[1:], blocks[::-1], [blocks[0], *blocks]):
        with pytest.raises(BadInput, match="every image once, in id order"):
            write(tmp_path, given, "i2t", N, wrong)
    with pytest.raises(BadInput, match="of 40 anchors were given"):
        write(tmp_path, given, "i2t", N, blocks[:-1])
    with pytest.raises(BadInput, match="8 wide"):
        write(tmp_path, given, "i2t", N + 1, blocks)
    assert list((tmp_path / "c").iterdir()) == []
    with pytest.raises(BadInput, match="no candidates artifact"):
        Candidates.open(tmp_path / "c", given.pairs)


def test_candidates_of_other_pairs_and_other_artifacts_are_refused(problem, tmp_path):
    given = problem(seed=5)
    _, folder = write(tmp_path, given, "i2t", N, blocks_of(given, "i2t", N))
    with pytest.raises(BadInput, match="searched for other pairs"):
        Candidates.open(folder, problem(seed=6).pairs)
    artifact = open_artifact(folder, CANDIDATES)
    other = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, kind="index"))
    with pytest.raises(BadInput, match="not candidates"):
        Candidates.open(other, given.pairs)


@pytest.mark.parametrize("name", ["candidates.npy", "scores.npy", "lowest_positive.npy", "manifest.json"])
def test_no_damage_is_used(problem, tmp_path, name):
    given = problem(seed=7, images=12)
    searched(given, "i2t", N, tmp_path)
    path = tmp_path / "i2t" / name
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for bit in draw.integers(0, 8 * len(whole), 60):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedArtifact):
            Candidates.open(tmp_path / "i2t", given.pairs)
    for length in draw.integers(0, len(whole), 10):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedArtifact):
            Candidates.open(tmp_path / "i2t", given.pairs)
    if name != "manifest.json":
        path.unlink()
        with pytest.raises(DamagedArtifact, match="missing"):
            Candidates.open(tmp_path / "i2t", given.pairs)
