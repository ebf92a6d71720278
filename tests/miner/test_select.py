"""Selection as a whole: deeper searches, shortfalls, caps, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.artifacts import dropped as dropped_module
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NEGATIVES, NegativeTable
from miner.artifacts.pairs import Pairs, sides
from miner.artifacts.store import LocalStore
from miner.filters import chosen, hub_cap
from miner.select import Selection, depths_of, write_selection
from tests.miner import filters_oracle
from tests.miner.filters_oracle import (
    assert_as_expected,
    deepener,
    expected,
    made,
    ranking,
    searched,
    selected,
    selection,
)

BOTH = pytest.mark.parametrize("direction", ["i2t", "t2i"])


def test_without_a_rule_the_first_k_are_kept(problem, oracle, tmp_path):
    made_up = problem(seed=1)
    candidates = searched(made_up, "i2t", 12, tmp_path)
    full = ranking(made_up, oracle, "i2t")
    for k in (1, 12):
        assert_as_expected(selection(made_up, candidates, [], k), expected(full, [], k, [12]))


@BOTH
def test_the_first_rule_that_drops_is_the_reason(problem, oracle, tmp_path, direction):
    made_up = problem(seed=2)
    candidates = searched(made_up, direction, 10, tmp_path)
    full = ranking(made_up, oracle, direction)
    drops = {
        "range-min:skip=3": lambda a, g, rank, s, low: rank < 3,
        "max-score:score=5": lambda a, g, rank, s, low: s > 5,
        "absolute-margin:margin=2": lambda a, g, rank, s, low: s > low - 2,
    }
    size = len(made_up.vectors(direction)[1])
    for order in (list(drops), list(drops)[::-1]):
        for block in (1, 9, None):
            found = selection(
                made_up, candidates, order, 4, deepen=deepener(made_up, direction), max_candidates=size, block=block
            )
            assert_as_expected(found, expected(full, [drops[name] for name in order], 4, [10, 40, size]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_deeper_searches_equal_filtering_the_full_ranking(oracle, problem, tmp_path_factory, data):
    """Any few candidates, any k, any rules by score and rank: as if everything had been searched at once."""
    made_up = problem(seed=data.draw(st.integers(0, 5)), images=10, dim=3, grid=data.draw(st.booleans()))
    direction = data.draw(st.sampled_from(["i2t", "t2i"]))
    size = len(made_up.vectors(direction)[1])
    num, k = data.draw(st.integers(1, size)), data.draw(st.integers(1, size))
    top = data.draw(st.sampled_from([-1.0, 0.0, 0.75, 1.5, 4.0]))
    skip = data.draw(st.integers(0, 6))
    said = [f"max-score:score={top}", f"range-min:skip={skip}"]
    drops = [lambda a, g, rank, s, low: s > top, lambda a, g, rank, s, low: rank < skip]
    if data.draw(st.booleans()):
        said, drops = said[::-1], drops[::-1]
    candidates = searched(made_up, direction, num, tmp_path_factory.mktemp("c"))
    most = data.draw(st.integers(num, size))
    found = selection(made_up, candidates, said, k, deepen=deepener(made_up, direction), max_candidates=most)
    depths = depths_of(num, most, size)
    assert depths[0] == num
    assert depths[-1] == most
    assert_as_expected(found, expected(ranking(made_up, oracle, direction), drops, k, depths))


def test_depths():
    assert depths_of(100, 1600, 30000) == (100, 400, 1600)
    assert depths_of(100, 500, 30000) == (100, 400, 500)
    assert depths_of(100, 1600, 250) == (100, 250)
    assert depths_of(100, 100, 30000) == (100,)
    assert depths_of(50, 800, 50) == (50,)


def test_by_default_sixteen_times_the_candidates_are_searched(problem, tmp_path):
    made_up = problem(seed=3, images=60)
    candidates = searched(made_up, "i2t", 3, tmp_path)
    found = selection(made_up, candidates, ["max-score:score=-100"], 2, deepen=deepener(made_up, "i2t"))
    _, dropped, reasons = selected(found)
    assert len(dropped[0]) == 48
    total = len(made_up.texts)
    assert reasons[0] == f"searched 48 of {total} texts: 48 dropped by max-score; max_candidates is 48"
    assert found.deepened == {12: 60, 48: 60}


def test_reasons_count_what_was_searched(problem, tmp_path):
    """Figures that add up, and why it went no deeper: the end of the gallery, the limit, no vectors."""
    made_up = problem(seed=3, images=6)
    size = len(made_up.texts)
    candidates = searched(made_up, "i2t", 4, tmp_path)
    own = np.diff(made_up.pairs.positives("image")[0]).tolist()
    rules = ["range-min:skip=2", "max-score:score=-1"]
    shallow = selected(selection(made_up, candidates, rules, 4))[2]
    assert all(
        reason.startswith(f"searched 4 of {size} texts: 2 dropped by range-min, ") for reason in shallow.values()
    )
    assert all(reason.endswith("; nothing to search deeper in") for reason in shallow.values())
    deep = selection(made_up, candidates, rules, size, deepen=deepener(made_up, "i2t"), max_candidates=size)
    negatives, _, reasons = selected(deep)
    assert len(reasons) == 6
    for row, reason in reasons.items():
        free = size - own[row]
        by_score = free - 2 - len(negatives[row])
        tail = f", {by_score} dropped by max-score" if by_score else ""
        wanted = (
            f"searched {free} of {size} texts: 2 dropped by range-min{tail}; the other {own[row]} are its positives"
        )
        assert reason == wanted
    limited = selection(made_up, candidates, rules, size, deepen=deepener(made_up, "i2t"), max_candidates=6)
    reasons = selected(limited)[2]
    assert all("max_candidates is 6" in reason or "are its positives" in reason for reason in reasons.values())
    nothing = selection(made_up, candidates, [], size, deepen=deepener(made_up, "i2t"), max_candidates=size)
    reasons = selected(nothing)[2]
    assert all(f": none dropped; the other {own[row]} are its positives" in reason for row, reason in reasons.items())


def test_an_anchor_is_never_lost_for_want_of_negatives(problem, tmp_path):
    made_up = problem(seed=4)
    candidates = searched(made_up, "t2i", 6, tmp_path)
    negatives, _, reasons = selected(selection(made_up, candidates, ["max-score:score=-1000"], 3))
    assert sorted(negatives) == sorted(reasons) == list(range(len(made_up.texts)))
    assert not any(negatives.values())


@BOTH
@pytest.mark.parametrize(("most", "num"), [(1, 8), (3, 8), (6, 3), (40, 5)])
@pytest.mark.parametrize("grid", [False, True])
def test_a_hub_cap_goes_through_all_pairs_from_the_highest_score(problem, oracle, tmp_path, direction, most, num, grid):
    made_up = problem(seed=5, dim=5, grid=grid)
    k = 4
    full = ranking(made_up, oracle, direction)
    anchors, gallery = sides(direction)
    place = {side: np.argsort(made_up.pairs.order(side)) for side in (anchors, gallery)}
    limit = 1.0
    offered = sorted(
        (-score, place[anchors][a], place[gallery][g], a, g)
        for a, (found, _) in full.items()
        for g, score in found
        if score <= limit
    )
    held: dict[int, list[int]] = {a: [] for a in full}
    used = dict.fromkeys(range(len(made_up.pairs.ids(gallery))), 0)
    for *_, a, g in offered:
        if len(held[a]) < k and used[g] < most:
            held[a].append(g)
            used[g] += 1
    candidates = searched(made_up, direction, num, tmp_path)
    size = len(made_up.pairs.ids(gallery))
    said = [f"max-score:score={limit}", f"hub-cap:most={most}"]
    tables = []
    for block in (11, None):
        found = selection(
            made_up, candidates, said, k, deepen=deepener(made_up, direction), max_candidates=size, block=block
        )
        negatives, dropped, reasons = selected(found)
        tables.append((negatives, dropped, reasons))
        assert {a: [g for g, _ in rows] for a, rows in negatives.items()} == held
        asked = np.bincount([g for rows in negatives.values() for g, _ in rows], minlength=size)
        assert asked.max() <= most
        for a, rows in negatives.items():
            assert (a in reasons) == (len(rows) < k)
            kept = {g for g, _ in rows}
            last = max((rank for rank, (g, _) in enumerate(full[a][0]) if g in kept), default=-1)
            passed = [
                (rank, g, score, 0 if score > limit else 1)
                for rank, (g, score) in enumerate(full[a][0])
                if g not in kept and (rank < last or len(rows) < k)
            ]
            assert dropped[a] == passed
    assert tables[0] == tables[1]


def test_a_hub_is_a_negative_of_its_nearest_anchors_ties_by_id():
    pairs = Pairs(("b", "c", "a"), ("0", "1", "2", "3"), np.array([0, 1, 2, 0]), np.arange(4))
    order = [pairs.image_ids[row] for row in pairs.order("image")]
    assert order == ["a", "b", "c"]
    lists = [[(3, 0.7), (1, 0.1)], [(2, 0.9), (1, 0.2)], [(3, 0.7), (0, 0.5)]]  # a, b, c
    candidates = made(pairs, "i2t", lists, [1, 1, 1])
    negatives, _, reasons = selected(Selection(candidates, pairs, chosen(["hub-cap:most=1"]), 1))
    assert {row: [g for g, _ in found] for row, found in negatives.items()} == {2: [3], 0: [2], 1: [0]}
    assert not reasons


def test_a_cap_that_cannot_be_met_is_a_counted_shortfall(problem, tmp_path):
    made_up = problem(seed=6, images=20)
    num_texts = len(made_up.texts)
    candidates = searched(made_up, "t2i", 4, tmp_path)
    found = selection(
        made_up, candidates, ["hub-cap:most=1"], 4, deepen=deepener(made_up, "t2i"), max_candidates=20
    )  # fmt: skip
    negatives, _, reasons = selected(found)
    assert sum(map(len, negatives.values())) == 20  # every image once
    assert len(negatives) == num_texts
    for row, reason in reasons.items():
        own = int(np.diff(made_up.pairs.positives("text")[0])[row])
        refused = 20 - own - len(negatives[row])
        assert (
            reason
            == f"searched {20 - own} of 20 images: {refused} dropped by hub-cap; the other {own} are its positives"
        )


def write(folder, found, provenance=None):
    draft = Draft(LocalStore(folder), "table", NEGATIVES, {})
    return write_selection(draft, found, provenance or {"metric": "ip"})


@BOTH
def test_what_is_written(problem, oracle, tmp_path, direction, monkeypatch):
    made_up = problem(seed=7)
    anchors, gallery = sides(direction)
    candidates = searched(made_up, direction, 8, tmp_path / "c")
    said = ["range-min:skip=1", "max-score:score=4", "hub-cap:most=30"]
    deep = {"deepen": deepener(made_up, direction)}
    artifact = write(tmp_path / "a", selection(made_up, candidates, said, 6, **deep))
    negatives, dropped, reasons = selected(selection(made_up, candidates, said, 6, **deep))
    table = NegativeTable.open(artifact, made_up.pairs)
    for row, rows in negatives.items():
        assert table.negatives[row][: len(rows)].tolist() == [g for g, _ in rows]
        assert table.scores[row][: len(rows)].tolist() == [s for _, s in rows]
    short = pd.read_parquet(artifact.path("shortfalls.parquet"))
    ids = made_up.pairs.ids(anchors)
    assert dict(zip(short.anchor_id, short.reason, strict=True)) == {ids[row]: why for row, why in reasons.items()}
    assert [
        len(negatives[row]) for row in made_up.pairs.ids(anchors).rows(list(short.anchor_id))
    ] == short.found.tolist()
    frame = pd.read_parquet(artifact.path("dropped.parquet"))
    names = ["range-min", "max-score", "hub-cap"]
    wanted = [
        (ids[row], rank, made_up.pairs.ids(gallery)[g], score, names[rule])
        for row in made_up.pairs.order(anchors).tolist()
        for rank, g, score, rule in dropped[row]
    ]
    assert list(frame.itertuples(index=False, name=None)) == wanted
    assert list(frame.columns) == ["anchor_id", "rank", "negative_id", "score", "rule"]
    again = table.dropped()
    assert again is not None
    offsets, rows = again
    assert len(offsets) == len(ids) + 1
    for row in range(len(ids)):
        assert rows[offsets[row] : offsets[row + 1]].tolist() == [g for _, g, *_ in dropped[row]]
    meta = artifact.manifest.meta
    assert meta["dropped"] == {name: int((frame.rule == name).sum()) for name in names}
    assert list(json.loads(artifact.manifest.dumps())["files"]) == sorted(artifact.manifest.files)
    assert artifact.manifest.files["dropped.parquet"].rows == len(wanted)
    about = meta["provenance"]["filter"]
    assert about["candidates"] == candidates.fingerprint
    assert (about["num_candidates"], about["max_candidates"]) == (8, 128)
    assert about["rules"] == [
        {"rule": "range-min", "skip": 1}, {"rule": "max-score", "score": 4.0}, {"rule": "hub-cap", "most": 30}
    ]  # fmt: skip
    assert table.provenance == meta["provenance"]

    again = write(tmp_path / "b", selection(made_up, candidates, said, 6, block=3, **deep))
    assert again.manifest.fingerprint == artifact.manifest.fingerprint
    turned = made_up.permuted(1)
    other = searched(turned, direction, 8, tmp_path / "turned")
    stored = write(tmp_path / "d", selection(turned, other, said, 6, deepen=deepener(turned, direction)))
    for name in ("dropped.parquet", "shortfalls.parquet"):
        assert stored.read(name) == artifact.read(name)
    monkeypatch.setattr(dropped_module, "_GROUP", 50)
    small = write(tmp_path / "e", selection(made_up, candidates, said, 6, **deep))
    assert pd.read_parquet(small.path("dropped.parquet")).equals(frame)
    pieces = write(tmp_path / "f", selection(made_up, candidates, said, 6, block=2, **deep))
    assert pieces.read("dropped.parquet") == small.read("dropped.parquet")


def test_deeper_searches_in_small_parts_change_nothing(problem, tmp_path, monkeypatch):
    made_up = problem(seed=8)
    candidates = searched(made_up, "t2i", 5, tmp_path)
    said = ["absolute-margin:margin=2", "hub-cap:most=40"]

    def tables():
        return selected(selection(made_up, candidates, said, 4, deepen=deepener(made_up, "t2i")))

    whole = tables()
    for cells in (1, 90):
        monkeypatch.setattr("miner.select._CELLS", cells)
        monkeypatch.setattr(hub_cap, "_CELLS", cells)
        assert tables() == whole


def test_nothing_dropped_is_an_empty_table(problem, tmp_path):
    made_up = problem(seed=9)
    artifact = write(tmp_path / "a", selection(made_up, searched(made_up, "i2t", 5, tmp_path), [], 5))
    frame = pd.read_parquet(artifact.path("dropped.parquet"))
    assert len(frame) == 0
    assert list(frame.columns) == ["anchor_id", "rank", "negative_id", "score", "rule"]
    again = NegativeTable.open(artifact, made_up.pairs).dropped()
    assert again is not None
    assert (again[0].any(), len(again[1])) == (False, 0)


def test_a_failed_selection_leaves_nothing(problem, tmp_path):
    made_up = problem(seed=9)
    found = selection(made_up, searched(made_up, "i2t", 5, tmp_path / "c"), ["same-text"], 5)
    with pytest.raises(BadInput, match="--texts"):
        write(tmp_path / "a", found)
    assert list((tmp_path / "a" / "table").iterdir()) == []


def test_other_vectors_are_found_out_when_it_searches_deeper(problem, tmp_path):
    made_up = problem(seed=10)
    candidates = searched(made_up, "i2t", 5, tmp_path)
    nudged = dataclasses.replace(made_up, texts=made_up.texts[::-1].copy())
    found = selection(made_up, candidates, ["range-min:skip=4"], 3, deepen=deepener(nudged, "i2t"))
    with pytest.raises(BadInput, match="the vectors are not those"):
        selected(found)


@pytest.mark.parametrize("score", [-math.inf, math.inf, math.nan])
def test_a_candidate_without_a_score_is_never_kept(score):
    pairs = Pairs(("a", "b"), ("0", "1", "2"), np.array([0, 1, 1]), np.arange(3))
    candidates = made(pairs, "i2t", [[(1, 0.5), (2, score)], [(0, 0.5)]], [1, 1])
    with pytest.raises(DamagedArtifact, match="finite score"):
        selected(Selection(candidates, pairs, [], 1))


def test_candidates_with_a_hole_or_an_own_positive_are_refused():
    pairs = Pairs(("a", "b"), ("0", "1", "2"), np.array([0, 1, 1]), np.arange(3))
    own = made(pairs, "i2t", [[(0, 0.5)], [(0, 0.5)]], [1, 1])
    with pytest.raises(DamagedArtifact, match="own positive"):
        selected(Selection(own, pairs, [], 1))
    whole = made(pairs, "i2t", [[(1, 0.5), (2, 0.4)], [(0, 0.5)]], [1, 1])
    hole = dataclasses.replace(whole, positions=np.where([[True, False], [False, False]], -1, whole.positions))
    with pytest.raises(DamagedArtifact, match="empty place"):
        selected(Selection(hole, pairs, [], 1))


def test_refusals(problem, tmp_path):
    made_up = problem(seed=11)
    candidates = searched(made_up, "i2t", 5, tmp_path)
    for k in (0, len(made_up.texts) + 1):
        with pytest.raises(BadInput, match="ask for 1 to"):
            selection(made_up, candidates, [], k)
    with pytest.raises(BadInput, match="give no fewer"):
        selection(made_up, candidates, [], 3, max_candidates=4)
    with pytest.raises(BadInput, match="there are none"):
        selected(selection(made_up, candidates, ["look-alike"], 3, vectors={}))


def test_progress_reaches_the_end(problem, tmp_path):
    made_up = problem(seed=11)
    seen = []
    found = selection(made_up, searched(made_up, "i2t", 5, tmp_path), [], 3, block=16)
    list(found.blocks(lambda done, total: seen.append((done, total))))
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_the_oracle_knows_its_pairs(problem):
    """The loops that everything is tested against agree with the pairs."""
    made_up = problem(seed=12)
    own = filters_oracle.own_pairs(made_up.pairs)
    for image in range(made_up.pairs.num_images):
        assert all((image, text) in own for text in filters_oracle.texts_of(made_up.pairs, image))
    assert sum(len(filters_oracle.images_of(made_up.pairs, t)) for t in range(made_up.pairs.num_texts)) == len(own)
