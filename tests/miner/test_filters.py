"""Every rule that looks at scores, vectors, ranks and files against a slow loop over the full ranking."""

from __future__ import annotations

import csv
import dataclasses
import math

import numpy as np
import pytest

from miner import filters, spoken
from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, sides
from miner.filters import DEFAULT, chosen
from miner.filters._outside import columns
from miner.filters._quantile import quantile
from tests.miner.filters_oracle import (
    assert_as_expected,
    by_image,
    by_text,
    cosine,
    deepener,
    ends,
    expected,
    made,
    percentile,
    ranking,
    searched,
    selected,
    selection,
)

BOTH = pytest.mark.parametrize("direction", ["i2t", "t2i"])
N, K = 12, 5


def check(problem, oracle, tmp_path, direction, said, drops, *, num=N, k=K, most=None, **more):
    """The rules give what the loops give, in blocks of two sizes, with and without deeper searches."""
    candidates = searched(problem, direction, num, tmp_path / "candidates")
    full = ranking(problem, oracle, direction)
    size = len(problem.vectors(direction)[1])
    depths = [num]
    while depths[-1] < size:
        depths.append(min(4 * depths[-1], size))
    for block in (7, None):
        deep = {"deepen": deepener(problem, direction), "max_candidates": size, "block": block}
        assert_as_expected(selection(problem, candidates, said, k, **deep, **more), expected(full, drops, k, depths))
        shallow = selection(problem, candidates, said, k, block=block, **more)
        assert_as_expected(shallow, expected(full, drops, k, [num]))


def base(full, num=N):
    """(anchor, row, rank, score, lowest) of all candidates."""
    return [
        (anchor, row, rank, score, lowest)
        for anchor, (found, lowest) in full.items()
        for rank, (row, score) in enumerate(found[:num])
    ]


SCORE_RULES = {
    "absolute-margin": lambda a, g, rank, s, low: s > low,
    "absolute-margin:margin=1.5": lambda a, g, rank, s, low: s > low - 1.5,
    "absolute-margin:margin=-2": lambda a, g, rank, s, low: s > low + 2,
    "relative-margin": lambda a, g, rank, s, low: s > low - 0.05 * abs(low),
    "relative-margin:margin=0.5": lambda a, g, rank, s, low: s > low - 0.5 * abs(low),
    "max-score:score=6": lambda a, g, rank, s, low: s > 6,
    "min-score:score=4.5": lambda a, g, rank, s, low: s < 4.5,
    "range-min:skip=3": lambda a, g, rank, s, low: rank < 3,
}


@BOTH
@pytest.mark.parametrize("said", SCORE_RULES)
def test_rules_by_score_and_rank(problem, oracle, tmp_path, direction, said):
    check(problem(seed=1), oracle, tmp_path, direction, [said], [SCORE_RULES[said]])


@pytest.mark.parametrize("said", ["absolute-margin:margin=0.25", "max-score:score=1.5", "range-min:skip=4"])
def test_ties_keep_their_order(problem, oracle, tmp_path, said):
    drops = {**SCORE_RULES, "absolute-margin:margin=0.25": lambda a, g, rank, s, low: s > low - 0.25}
    drops |= {"max-score:score=1.5": lambda a, g, rank, s, low: s > 1.5}
    drops |= {"range-min:skip=4": lambda a, g, rank, s, low: rank < 4}
    check(problem(seed=2, grid=True), oracle, tmp_path, "t2i", [said], [drops[said]])


def one_anchor(lowest, scores, said, k=1, texts=None):
    """The scores that survive of one image's candidates, given its lowest positive."""
    count = len(scores)
    pairs = Pairs(
        ("a", "z"), tuple(f"t{i}" for i in range(count + 1)), np.array([0] + [1] * count), np.arange(count + 1)
    )
    lists = [[(at + 1, score) for at, score in enumerate(scores)], []]
    candidates = made(pairs, "i2t", lists, [lowest, 0.0])
    from miner.select import Selection

    negatives, _, _ = selected(Selection(candidates, pairs, chosen(said), k))
    return [round(score, 4) for _, score in negatives[0]]


@pytest.mark.parametrize(
    ("lowest", "kept"),
    [
        (1.0, [0.94, 0.5, -1.0]),  # bound 0.95
        (-1.0, [-1.06, -3.0]),  # bound -1.05; positive * 0.95 = -0.95 would keep -1.0
        (0.0, [-0.5]),  # bound 0
    ],
)
def test_a_relative_margin_lies_below_the_positive_whatever_its_sign(lowest, kept):
    given = {1.0: [1.2, 0.96, 0.94, 0.5, -1.0], -1.0: [0.1, -0.96, -1.0, -1.04, -1.06, -3.0], 0.0: [0.5, 1e-6, -0.5]}
    assert one_anchor(lowest, given[lowest], ["relative-margin"], k=6 if len(given[lowest]) > 5 else 4) == kept


@pytest.mark.parametrize("said", ["absolute-margin", "relative-margin", "percentile:of=hardness,above=1"])
def test_an_unknown_positive_drops_nothing(said):
    assert one_anchor(math.nan, [3.0, 2.0, 1.0], [said], k=3) == [3.0, 2.0, 1.0]


def test_a_score_at_the_bound_is_kept():
    assert one_anchor(0.5, [0.75, 0.5, 0.25], ["absolute-margin"], k=3) == [0.5, 0.25]
    assert one_anchor(0.5, [0.75, 0.5, 0.25], ["max-score:score=0.5"], k=3) == [0.5, 0.25]
    assert one_anchor(0.5, [0.75, 0.5, 0.25], ["min-score:score=0.5"], k=3) == [0.75, 0.5]


@BOTH
@pytest.mark.parametrize("of", ["score", "hardness"])
@pytest.mark.parametrize(("above", "below"), [(95, 0), (60, 0), (100, 30), (70, 20)])
def test_percentiles_of_all_candidates(problem, oracle, tmp_path, direction, of, above, below):
    given = problem(seed=3)
    full = ranking(given, oracle, direction)

    def value(score, lowest):
        return score if of == "score" else float(np.float32(score - lowest))

    values = [value(score, lowest) for *_, score, lowest in base(full)]
    high, low = percentile(values, above), percentile(values, below)
    said = f"percentile:above={above},below={below},of={of}"
    drop = lambda a, g, rank, s, lowest: value(s, lowest) > high or value(s, lowest) < low  # noqa: E731
    check(given, oracle, tmp_path, direction, [said], [drop])


def test_percentiles_are_of_what_the_rules_before_leave(problem, oracle, tmp_path):
    given = problem(seed=4)
    full = ranking(given, oracle, "i2t")
    nearest = lambda a, g, rank, s, lowest: rank < 2  # noqa: E731
    left = [score for a, g, rank, score, lowest in base(full) if rank >= 2]
    high = percentile(left, 50)
    rules = ["range-min:skip=2", "percentile:above=50"]
    check(given, oracle, tmp_path, "i2t", rules, [nearest, lambda a, g, rank, s, lowest: s > high])
    first = [score for a, g, rank, score, lowest in base(full) if 2 <= rank < 2 + K]
    high_of_first = percentile(first, 50)
    assert high_of_first != high
    rules = ["range-min:skip=2", "percentile:above=50,among=negatives"]
    check(given, oracle, tmp_path / "n", "i2t", rules, [nearest, lambda a, g, rank, s, lowest: s > high_of_first])


@pytest.mark.parametrize("size", [1, 2, 99, 100, 1000])
def test_a_streamed_percentile_is_exact(size):
    rng = np.random.default_rng(size)
    values = rng.normal(size=size).astype(np.float32)
    values[rng.random(size) < 0.3] = 0
    values[: size // 10] = -values[: size // 10]
    for per_hundred in (0, 1, 7, 25, 50, 93, 95, 99, 100):
        from fractions import Fraction

        found = quantile(lambda: iter(np.array_split(np.append(values, np.nan), 3)), Fraction(per_hundred, 100))
        assert found == percentile(values.tolist(), per_hundred)
    assert math.isnan(quantile(lambda: iter([values[:0]]), Fraction(1, 2)))


@BOTH
@pytest.mark.parametrize("side", ["either", "image", "text"])
def test_near_embedding(problem, oracle, tmp_path, direction, side):
    given = problem(seed=5, dim=4)
    bound = 0.93
    near_text = by_text(given.pairs, direction, lambda a, b: cosine(given.texts, a, b) >= bound)
    near_image = by_image(given.pairs, direction, lambda a, b: cosine(given.images, a, b) >= bound)
    wanted = {"text": [near_text], "image": [near_image], "either": [near_text, near_image]}[side]
    drop = lambda *one: any(each(*one) for each in wanted)  # noqa: E731
    hits = sum(drop(*one) for one in base(ranking(given, oracle, direction)))
    assert hits > 5
    said = f"near-embedding:cosine={bound},side={side}"
    check(given, oracle, tmp_path, direction, [said], [drop])
    scaled = dataclasses.replace(given, images=given.images * np.float32(8), texts=given.texts * np.float32(0.5))
    check(scaled, oracle, tmp_path / "scaled", direction, [said], [drop])


@BOTH
@pytest.mark.parametrize(("share", "texts", "images"), [(0.25, 1.0, 0.5), (0.5, 1.0, 0.0), (0.1, 0.0, 2.0)])
def test_look_alike(problem, oracle, tmp_path, direction, share, texts, images):
    given = problem(seed=6, dim=6)
    full = ranking(given, oracle, direction)
    own_texts = {
        i: [t for a, t in zip(given.pairs.image_rows, given.pairs.text_rows, strict=True) if a == i] for i in range(40)
    }
    own_images = {
        t: [a for a, b in zip(given.pairs.image_rows, given.pairs.text_rows, strict=True) if b == t]
        for t in range(given.pairs.num_texts)
    }

    def look(anchor, item):
        image, text = ends(direction, anchor, item)
        near_text = max(cosine(given.texts, text, other) for other in own_texts[image])
        near_image = max(cosine(given.images, image, other) for other in own_images[text])
        return texts * near_text + images * near_image

    would_be = [look(anchor, row) for anchor, row, rank, *_ in base(full) if rank < K]
    bound = percentile(would_be, round(100 * (1 - share))) + 1e-6
    said = f"look-alike:share={share},texts={texts},images={images}"
    check(given, oracle, tmp_path, direction, [said], [lambda a, g, *_: look(a, g) > bound])
    dropped = sum(value > bound for value in would_be)
    assert share * len(would_be) - 1 <= dropped <= share * len(would_be)


def test_look_alike_drops_no_more_than_its_share_of_equals(problem, tmp_path):
    """All alike: a bound that took ties too would drop everything."""
    given = problem(seed=7)
    same = dataclasses.replace(given, images=np.ones_like(given.images), texts=np.ones_like(given.texts))
    found = selection(same, searched(same, "i2t", N, tmp_path), ["look-alike"], K)
    _, dropped, _ = selected(found)
    assert sum(map(len, dropped.values())) == 0


@BOTH
@pytest.mark.parametrize("drop", ["one-sided", "mutual"])
def test_agreement(problem, oracle, tmp_path, direction, drop):
    given = problem(seed=8)
    other = "t2i" if direction == "i2t" else "i2t"
    back = ranking(given, oracle, other)
    within = 9
    nearest = {row: {item for item, _ in found[:within]} for row, (found, _) in back.items()}
    opposite = searched(given, other, 15, tmp_path / "opposite")
    said = f"agreement:within={within},drop={drop}"
    judge = lambda a, g, *_: (a in nearest[g]) == (drop == "mutual")  # noqa: E731
    check(given, oracle, tmp_path, direction, [said], [judge], opposite=opposite)
    candidates = searched(given, direction, N, tmp_path / "again")
    with pytest.raises(BadInput, match="search both directions"):
        selected(selection(given, candidates, [said], K))
    with pytest.raises(BadInput, match="within = 16, but 15 of"):
        selected(selection(given, candidates, ["agreement:within=16"], K, opposite=opposite))


def write_rows(path, header, rows):
    """As .csv, .tsv, .parquet or .jsonl."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[at] for row in rows] for at, name in enumerate(header)}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(header)
            writer.writerows(rows)
    return path


def names(problem, direction):
    """(anchor ids, gallery ids)."""
    return tuple(problem.pairs.ids(side) for side in sides(direction))


@BOTH
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("unscored", ["keep", "drop"])
def test_scorer(problem, oracle, tmp_path, direction, suffix, unscored):
    given = problem(seed=9)
    anchors, gallery = names(given, direction)
    rng = np.random.default_rng(9)
    scores = {}
    for anchor, row, *_ in base(ranking(given, oracle, direction), 20):
        if rng.random() < 0.7:
            scores[anchor, row] = float(np.round(rng.normal(), 3))
    rows = [(anchors[a], gallery[g], score) for (a, g), score in scores.items()]
    path = write_rows(
        tmp_path / f"scores{suffix}", ("anchor_id", "negative_id", "score"), [*rows, rows[0], ("?", "?", 9.0)]
    )
    said = f"scorer:file={path},max_score=0.8,min_score=-0.9,unscored={unscored}"

    def drop(a, g, *_):
        score = scores.get((a, g))
        return unscored == "drop" if score is None else score > 0.8 or score < -0.9

    check(given, oracle, tmp_path, direction, [said], [drop])
    by_pair = [(*ends(direction, a, g), score) for (a, g), score in scores.items()]
    named = [(given.pairs.image_ids[i], given.pairs.text_ids[t], score) for i, t, score in by_pair]
    again = write_rows(tmp_path / f"pairs{suffix}", ("image_id", "text_id", "score"), named)
    check(given, oracle, tmp_path / "pairs", direction, [said.replace(str(path), str(again))], [drop])


def test_a_scorer_that_lacks_a_pair_or_contradicts_itself_is_refused(problem, tmp_path):
    given = problem(seed=9)
    candidates = searched(given, "i2t", N, tmp_path)
    anchors, gallery = names(given, "i2t")
    header = ("anchor_id", "negative_id", "score")
    rows = [(anchors[0], gallery[g], 0.5) for g in range(10)]
    for said, kept, sentence in (
        ("unscored=refuse", rows, "no score for anchor"),
        ("max_score=1", [*rows, (anchors[0], gallery[3], 0.6)], "several scores"),
        ("max_score=1", [("x", "y", 1.0)], "image_id and text_id"),
        ("max_score=1", [*rows, (anchors[1], gallery[0], math.nan)], "row 11 has no score"),
        ("max_score=1", [(anchors[1], "", 2.0)], "row 1 has no negative_id"),
    ):
        path = write_rows(tmp_path / "s.csv", header, kept)
        with pytest.raises(BadInput, match=sentence):
            selected(selection(given, candidates, [f"scorer:file={path},{said}"], K))
    (tmp_path / "s.csv").write_text("anchor_id,score\n1,2\n")
    with pytest.raises(BadInput, match="found the columns anchor_id, score"):
        selected(selection(given, candidates, [f"scorer:file={tmp_path / 's.csv'},max_score=1"], K))
    (tmp_path / "s.csv").write_text("anchor_id,negative_id,score\n1,2,much\n")
    with pytest.raises(BadInput, match="cannot be read"):
        selected(selection(given, candidates, [f"scorer:file={tmp_path / 's.csv'},max_score=1"], K))
    with pytest.raises(BadInput, match="no such file"):
        selected(selection(given, candidates, [f"scorer:file={tmp_path / 'n.csv'},max_score=1"], K))
    with pytest.raises(BadInput, match="give the scores as"):
        selected(selection(given, candidates, [f"scorer:file={tmp_path / 's.txt'},max_score=1"], K))


@BOTH
@pytest.mark.parametrize(
    "layout", ["anchor_id,negative_id", "image_id,text_id", "negative_id", "own side", "other side"]
)
def test_block_list(problem, oracle, tmp_path, direction, layout):
    given = problem(seed=10)
    anchor_side, gallery_side = sides(direction)
    ids = names(given, direction)
    full = ranking(given, oracle, direction)
    pairs = [(a, g) for a, g, rank, *_ in base(full) if (a + rank) % 3 == 0]
    items = sorted({g for _, g in pairs})[::4]
    if layout == "anchor_id,negative_id":
        rows, drop = [(ids[0][a], ids[1][g]) for a, g in pairs], lambda a, g, *_: (a, g) in set(pairs)
    elif layout == "image_id,text_id":
        both = [ends(direction, a, g) for a, g in pairs]
        rows = [(given.pairs.image_ids[i], given.pairs.text_ids[t]) for i, t in both]
        drop = lambda a, g, *_: (a, g) in set(pairs)  # noqa: E731
    elif layout == "other side":
        layout, rows, drop = f"{anchor_side}_id", [(ids[0][0],)], lambda *_: False
    else:
        layout = "negative_id" if layout == "negative_id" else f"{gallery_side}_id"
        rows, drop = [(ids[1][g],) for g in items], lambda a, g, *_: g in items
    path = write_rows(tmp_path / "blocked.csv", layout.split(","), rows)
    check(given, oracle, tmp_path, direction, [f"block-list:file={path}"], [drop])


def test_a_block_list_of_strangers_is_refused(problem, tmp_path):
    given = problem(seed=10)
    candidates = searched(given, "i2t", N, tmp_path)
    for header, row in (("negative_id", ("?",)), ("anchor_id,negative_id", ("?", "?"))):
        path = write_rows(tmp_path / "b.csv", header.split(","), [row])
        with pytest.raises(BadInput, match="not one of its"):
            selected(selection(given, candidates, [f"block-list:file={path}"], K))


@pytest.mark.parametrize("header", ["negative_id", "anchor_id,negative_id", "image_id,text_id", "image_id"])
def test_an_empty_block_list_blocks_nothing(problem, oracle, tmp_path, header):
    given = problem(seed=10)
    for suffix in (".csv", ".parquet"):
        path = write_rows(tmp_path / f"blocked{suffix}", header.split(","), [])
        check(given, oracle, tmp_path / suffix, "t2i", [f"block-list:file={path}"], [lambda *_: False])


def test_ids_in_json_lines_may_be_numbers(tmp_path):
    """Beside strings, in the same column too; nothing else is an id."""
    path = tmp_path / "b.jsonl"
    layouts = [("anchor_id", "negative_id"), ("image_id", "text_id", "score")]
    path.write_text(
        '{"anchor_id": 7, "negative_id": "08"}\n\n{"anchor_id": "2009-01-01", "negative_id": 12345678901}\n'
    )
    found = columns(path, layouts, "pairs")
    assert {name: column.to_pylist() for name, column in found.items()} == {
        "anchor_id": ["7", "2009-01-01"], "negative_id": ["08", "12345678901"]
    }  # fmt: skip
    path.write_text('{"image_id": 7, "text_id": 8, "score": 1}\n{"image_id": 7, "text_id": "9", "score": 0.5}\n')
    assert columns(path, layouts, "pairs")["score"].to_pylist() == [1.0, 0.5]
    for wrong, said in (
        ("1.5", "anchor_id is 1.5"),
        ("true", "anchor_id is true"),
        ("[1]", r"anchor_id is \[1\]"),
    ):
        path.write_text(f'{{"anchor_id": {wrong}, "negative_id": 3}}\n')
        with pytest.raises(BadInput, match=said):
            columns(path, layouts, "pairs")
    for line in ("7", "{", '"image_id"'):
        path.write_text(line + "\n")
        with pytest.raises(BadInput, match="cannot be read"):
            columns(path, layouts, "pairs")


@BOTH
@pytest.mark.parametrize("given_sides", ["images", "texts", "both"])
def test_same_group(problem, oracle, tmp_path, direction, given_sides):
    given = problem(seed=11)
    rng = np.random.default_rng(11)
    groups = {
        "image": {i: f"g{rng.integers(12)}" for i in range(given.pairs.num_images) if rng.random() < 0.8},
        "text": {t: f"g{rng.integers(12)}" for t in range(given.pairs.num_texts) if rng.random() < 0.8},
    }
    files = {}
    for side, column in (("image", "image_id"), ("text", "id")):
        rows = [(given.pairs.ids(side)[row], group) for row, group in groups[side].items()]
        files[side] = write_rows(tmp_path / f"{side}.csv", (column, "group"), [*rows, ("?", "g1")])
    wanted = {"images": ["image"], "texts": ["text"], "both": ["image", "text"]}[given_sides]
    same = lambda side: lambda a, b: a in groups[side] and groups[side][a] == groups[side].get(b)  # noqa: E731
    drops = []
    if "text" in wanted:
        drops.append(by_text(given.pairs, direction, same("text")))
    if "image" in wanted:
        drops.append(by_image(given.pairs, direction, same("image")))
    if len(wanted) == 2:

        def directly(anchor, item, *_):
            image, text = ends(direction, anchor, item)
            return image in groups["image"] and groups["image"][image] == groups["text"].get(text)

        drops.append(directly)
    settings = ",".join(f"{side}s={files[side]}" for side in wanted)
    drop = lambda *one: any(each(*one) for each in drops)  # noqa: E731
    check(given, oracle, tmp_path, direction, [f"same-group:{settings}"], [drop])


def test_wrong_groups_are_refused(problem, tmp_path):
    given = problem(seed=11)
    candidates = searched(given, "i2t", N, tmp_path)
    own = given.pairs.text_ids[0]
    for rows, sentence in (([("?", "g")], "not one of its ids"), ([(own, "a"), (own, "b")], "two groups")):
        path = write_rows(tmp_path / "g.csv", ("id", "group"), rows)
        with pytest.raises(BadInput, match=sentence):
            selected(selection(given, candidates, [f"same-group:texts={path}"], K))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("relativ-margin", "Did you mean 'relative-margin'"),
        ("relative-margin:margn=1", "did you mean 'margin'"),
        ("relative-margin:margin=x", "not a number"),
        ("relative-margin:margin=nan", "give a number"),
        ("absolute-margin:margin=inf", "give a number"),
        ("max-score", "needs score"),
        ("max-score:score=nan", "give a number"),
        ("min-score:score=nan", "give a number"),
        ("range-min:skip=-1", "ranks to pass over"),
        ("percentile:above=5,below=6", "below < above"),
        ("percentile:above=101", "below < above"),
        ("near-embedding:cosine=2", "from -1 to 1"),
        ("near-embedding:side=both", "not one of either, image, text"),
        ("look-alike:share=1", "below 1"),
        ("look-alike:texts=-1", "weights"),
        ("look-alike:texts=0,images=0", "nothing is compared"),
        ("agreement:within=0", "at least 1"),
        ("hub-cap", "needs most"),
        ("hub-cap:most=0", "at least 1"),
        ("scorer:file=x.csv", "nothing can be dropped"),
        ("scorer:file=x.csv,max_score=1,min_score=2", "in this order"),
        ("same-group", "give images=FILE"),
        ("near-text:jaccard=0", "above 0"),
        ("near-text:size=0", "at least 1"),
        ("near-image:bits=64", "from 0 to 63"),
    ],
)
def test_wrong_settings_are_refused(said, sentence):
    with pytest.raises(BadInput, match=sentence):
        chosen([said])


def test_rules_are_named_apart_and_the_default_is_one_of_them():
    assert [rule.name for rule in chosen(["default"])] == [rule.name for rule in chosen(DEFAULT)]
    assert [rule.name for rule in chosen(["max-score:score=1", "min_score:score=0"])] == ["max-score", "min-score"]
    twice = [rule.name for rule in chosen(["max-score:score=1", "max-score:score=2"])]
    assert twice == ["max-score:score=1.0", "max-score:score=2.0"]
    with pytest.raises(BadInput, match="given twice"):
        chosen(["max-score:score=1", "max-score:score=1.0"])
    with pytest.raises(BadInput, match="the last"):
        chosen(["hub-cap:most=3", "max-score:score=1"])


def test_settings_name_a_file_by_its_bytes(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("a")
    rule = chosen([f"scorer:file={path},max_score=1"])[0]
    first = rule.settings()
    assert first["min_score"] == "-inf"
    assert first["rule"] == "scorer"
    assert first["file"]["name"] == "s.csv"
    path.write_text("b")
    assert rule.settings()["file"]["sha256"] != first["file"]["sha256"]
    path.unlink()
    with pytest.raises(BadInput, match="no such file"):
        rule.settings()


def test_every_rule_is_described_and_frozen():
    for name in spoken.names(filters):
        module = spoken.module(filters, "rule", name)
        assert module.__doc__.partition("\n")[0].startswith(("Drops", "Lets")), name
        assert dataclasses.is_dataclass(module.Config)
        assert module.Config.__dataclass_params__.frozen, name
