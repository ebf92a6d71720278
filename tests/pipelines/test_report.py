"""The report page: what it says is what the tables say, and no caption can do anything but be read."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, sides
from pipelines import report
from pipelines.report import listing, overview, pictures
from pipelines.report.charts import charts, score_curves
from pipelines.report.embedding_map import project
from pipelines.report.suspicion import suspicion
from tests.pipelines.pages import (
    HOSTILE,
    NUM_IMAGES,
    embedded,
    make_dataset,
    make_rounds,
    make_run,
    page_of,
    unpacked,
)

BOTH = pytest.mark.parametrize("direction", ["i2t", "t2i"])


class Elements(HTMLParser):
    """Start tags with attributes, and the text inside each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inside.append((*self.tags[-1], data))


class Told:
    """A page's columns of one direction, read as rows of the pairs by the ids that the page gives its items."""

    def __init__(self, page: str, run: Any, direction: Direction) -> None:
        self.arrays, self.values = unpacked(page)
        self.direction, self.about = direction, self.values[direction]
        self.rows = {side: run.dataset.pairs.ids(side).rows(self.values[f"{side}.id"]) for side in ("image", "text")}
        self.side, self.other = sides(direction)
        self.anchors = self.rows[self.side][self.at("anchor")].tolist()

    def at(self, name: str) -> Any:
        return self.arrays[f"{self.direction}.{name}"]

    def unscaled(self, values: Any, what: str = "score") -> Any:
        low, high = self.about[what]
        return np.where(values == 65535, np.nan, low + values / 65534 * (high - low))

    def block(self, name: str) -> dict[int, dict[str, Any]]:
        """By anchor row: negatives [(row, score, rank before)], lowest, found, above."""
        depth = self.about["depths"][name]
        items, scores, before = (self.at(f"{name}.{key}").reshape(-1, depth) for key in ("items", "scores", "before"))
        scores = self.unscaled(scores)
        found = {}
        for place, who in enumerate(self.at(f"{name}.who").tolist()):
            there = [
                (int(self.rows[self.other][item]), score, rank)
                for item, score, rank in zip(items[place], scores[place], before[place].tolist(), strict=True)
                if item >= 0
            ]
            more = {key: self.at(f"{name}.{key}")[place] for key in ("lowest", "found", "above")}
            found[self.anchors[who]] = {"negatives": there, **more}
        return found


@BOTH
def test_every_anchor_shows_its_positives_and_what_was_mined(direction: Direction) -> None:
    run = make_run()
    pairs, rounds = run.dataset.pairs, run.rounds
    told = Told(page_of(run), run, direction)
    assert told.anchors == list(range(len(pairs.ids(told.side))))
    assert told.about["rounds"] == [1, 2]
    assert set(told.about["depths"]) == {"1", "2"}  # round 0 mined nothing
    links = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
    starts = told.at("positives.at")
    for row in told.anchors:
        own = sorted(b if told.side == "image" else a for a, b in links if (a if told.side == "image" else b) == row)
        positives = told.at("positives")[starts[row] : starts[row + 1]]
        assert told.rows[told.other][positives].tolist() == own
        assert told.at("positives.all")[row] == len(own)
    for number in (1, 2):
        table = rounds[number].tables[direction]
        for row, block in told.block(str(number)).items():
            there = [n for n in table.negatives[row].tolist() if n >= 0]
            assert [negative for negative, _, _ in block["negatives"]] == there
            assert block["found"] == len(there)
            lowest, above = float(table.lowest_positive[row]), 0
            assert block["lowest"] == pytest.approx(lowest)
            for rank, (negative, score, before) in enumerate(block["negatives"]):
                true = float(table.scores[row, rank])
                above += true > lowest
                assert score == pytest.approx(true, abs=4e-5)
                previous = rounds[1].tables[direction].negatives[row].tolist()
                expected = previous.index(negative) + 1 if negative in previous else 0
                assert before == (65535 if number == 1 else expected)
            assert block["above"] == above
    assert told.at("above").tolist() == [block["above"] for block in told.block("2").values()]


@BOTH
def test_what_rules_dropped_is_told_with_rank_score_and_reason(direction: Direction) -> None:
    run = make_run()
    told, dropped = Told(page_of(run), run, direction), run.dropped[direction]
    starts = told.at("cut.at")
    found = [
        (told.anchors[who], int(told.rows[told.other][told.at("cut.items")[cell]]), int(told.at("cut.ranks")[cell]),
         told.about["rules"][told.at("cut.rules")[cell]])
        for place, who in enumerate(told.at("cut.who"))
        for cell in range(starts[place], starts[place + 1])
    ]  # fmt: skip
    wanted = zip(dropped.anchors, dropped.candidates, dropped.ranks, dropped.rule, strict=True)
    assert found == [(int(a), int(c), int(r), dropped.rules[rule]) for a, c, r, rule in wanted]
    assert told.unscaled(told.at("cut.scores")) == pytest.approx(dropped.scores, abs=4e-5)
    assert told.at("dropped").tolist() == np.bincount(dropped.anchors, minlength=len(told.anchors)).tolist()


@BOTH
def test_suspicion_is_likeness_to_the_positives_by_a_slow_loop(direction: Direction) -> None:
    run = make_run()
    pairs, table = run.dataset.pairs, run.rounds[2].tables[direction]
    unit = {side: v / np.linalg.norm(v, axis=1, keepdims=True) for side, v in run.vectors.items()}
    own: dict[str, dict[int, list[int]]] = {"image": {}, "text": {}}
    for image, text in zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True):
        own["image"].setdefault(image, []).append(text)
        own["text"].setdefault(text, []).append(image)
    rows = np.arange(len(table.negatives))
    found = suspicion(pairs, table, rows, 3, run.vectors)
    for row in rows.tolist():
        for rank, negative in enumerate(table.negatives[row, :3].tolist()):
            if negative < 0:
                assert np.isnan(found[row, rank])
                continue
            image, text = (row, negative) if direction == "i2t" else (negative, row)
            texts = max(float(unit["text"][text] @ unit["text"][other]) for other in own["image"][image])
            images = max(float(unit["image"][image] @ unit["image"][other]) for other in own["text"][text])
            assert found[row, rank] == pytest.approx(texts + 0.5 * images, abs=1e-5)
    bare = suspicion(pairs, table, rows, 3, {})
    there = table.negatives[:, :3] >= 0
    np.testing.assert_allclose(bare[there], (table.scores[:, :3] - table.lowest_positive[:, None])[there])


@BOTH
def test_suspects_come_first_and_hubs_are_counted(direction: Direction) -> None:
    run = make_run()
    told, table = Told(page_of(run), run, direction), run.rounds[2].tables[direction]
    found = suspicion(run.dataset.pairs, table, np.arange(len(table.negatives)), table.k, run.vectors)
    suspects = told.at("suspects").reshape(-1, 2)
    shown = [float(found[told.anchors[a], r]) for a, r in suspects.tolist()]
    assert shown == sorted(found[np.isfinite(found)].tolist(), reverse=True)[: len(shown)]
    most = np.where(np.isfinite(found), found, -np.inf).max(1)
    known = np.isfinite(most)
    assert told.unscaled(told.at("suspicion"), "suspicion")[known] == pytest.approx(most[known], abs=1e-4)
    times = np.bincount(table.negatives[table.negatives >= 0])
    hubs = told.rows[told.other][told.at("hubs")]
    assert told.at("hubs.times").tolist() == times[hubs].tolist() == sorted(times[times > 0], reverse=True)[:60]
    first = [int((table.negatives[:, 0] == hub).sum()) for hub in hubs]
    assert told.at("hubs.first").tolist() == first


def test_pictures_are_there_once_and_without_loss() -> None:
    run = make_run()
    page = page_of(run)
    _, values = unpacked(page)
    found = json.loads(embedded(page, "pictures"))
    assert len(found) == NUM_IMAGES
    rows = run.dataset.pairs.image_ids.rows(values["image.id"])
    for item, encoded in found.items():
        picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
        wanted = run.dataset.images[rows[[int(item)]]][0]
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), wanted)


def test_large_pictures_shrink_and_then_the_important_ones_are_kept() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 200, 120, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(40)

    def sizes(budget: int) -> tuple[list[int], set[tuple[int, int]]]:
        found = pictures.thumbnails(images, order, budget)
        assert sum(map(len, found.values())) <= budget
        return list(found), {Image.open(io.BytesIO(base64.b64decode(each))).size for each in found.values()}

    assert sizes(1_000_000) == (order.tolist(), {(72, 120)})
    rows, (size,) = sizes(100_000)
    assert rows == order.tolist()
    assert max(size) < 120
    rows, (size,) = sizes(20_000)
    assert rows == order.tolist()[: len(rows)]
    assert 0 < len(rows) < 40
    assert max(size) == 48


def test_hostile_words_are_data_everywhere() -> None:
    run = make_run(title=HOSTILE[0], settings={"a": HOSTILE[1], HOSTILE[2]: {"b": HOSTILE[0]}})
    page = page_of(run)
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 5
    assert not [tag for tag, _ in elements.tags if tag in ("img", "i", "iframe", "object", "svg", "base")]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    for name in ("pictures", "charts"):
        assert not set("<>&'") & set(embedded(page, name))
    for name in ("packed", "plotly"):
        assert re.fullmatch(r"[A-Za-z0-9+/=]+", embedded(page, name))
    _, values = unpacked(page)
    texts = dict(zip(values["text.id"], values["text"], strict=True))
    assert texts == dict(zip(run.dataset.pairs.text_ids, run.dataset.pairs.texts, strict=True))
    assert html.escape("<b>set</b>") in page


def test_nothing_is_loaded_and_the_policy_allows_known_scripts_and_style_alone() -> None:
    page, served = page_of(), page_of(served=True)
    elements = Elements(page)

    def policy(of: Elements) -> dict[str, list[str]]:
        (said,) = [a["content"] for _, a in of.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert said is not None
        return {part.split()[0]: part.split()[1:] for part in said.split(";")}

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    parts = policy(elements)
    assert parts["default-src"] == parts["connect-src"] == ["'none'"]
    assert parts["img-src"] == ["data:"]
    assert policy(Elements(served)) == {**parts, "connect-src": ["'self'"]}
    (script,) = [text for tag, a, text in elements.inside if tag == "script" and "type" not in a and text.strip()]
    (style,) = [text for tag, _, text in elements.inside if tag == "style" and text.strip()]
    library = gzip.decompress(base64.b64decode(embedded(page, "plotly"))).decode()
    assert "plotly.js" in library[:200]
    assert parts["script-src"] == [digest(script), digest(library)]
    assert parts["style-src"] == [digest(style), digest("")]
    for _, attributes in elements.tags:
        assert "style" not in attributes  # the policy would block it
        for name in ("src", "href", "action"):
            assert re.match(r"#|data:|$", attributes.get(name) or "")
    own = script + style
    assert not re.search(r"https?:|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(|new Function", own)


def test_the_same_arguments_give_the_same_page_and_the_seed_chooses() -> None:
    run = make_run(seed=5)
    first = page_of(run, num_anchors=6)
    assert first == page_of(make_run(rounds=make_rounds(run.dataset.pairs)[::-1], seed=5), num_anchors=6)
    chosen = {tuple(Told(page_of(make_run(seed=seed), num_anchors=6), run, "t2i").anchors) for seed in range(4)}
    assert len(chosen) > 1


def test_the_suspicious_half_is_listed_and_others_are_drawn() -> None:
    run = make_run()
    whole = listing.listing(run, "t2i", 1000, 1000, 6)
    assert whole is not None
    most = whole.most
    for num in (4, 30):
        some = listing.listing(run, "t2i", num, 2, 6)
        assert some is not None
        assert len(some.rows) == num
        assert (np.diff(some.rows) > 0).all()
        assert len(some.detailed) == 2
        looked = most[some.rows]
        np.testing.assert_array_equal(some.most, looked)
        if 2 * num >= len(most):
            assert set(np.argsort(-most)[: (num + 1) // 2]) <= set(some.rows.tolist())
    table = run.rounds[2].tables["t2i"]
    margin = listing.hardest_margin(table)
    assert margin[1] == -np.inf
    assert listing.share_outscored(table) == pytest.approx(np.mean(margin > 0))


def test_anchors_beyond_the_detailed_show_their_first_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setattr(report, "_CELLS", 100)
    told = Told(page_of(run, num_ranks=6), run, "i2t")
    assert told.about["depths"] == {"1": 6, "2": 6, "all": 3}
    table = run.rounds[2].tables["i2t"]
    assert len(told.block("1")) == 100 // (2 * 2 * 6)
    everyone = told.block("all")
    assert sorted(everyone) == told.anchors
    for row, block in everyone.items():
        wanted = [n for n in table.negatives[row, :3].tolist() if n >= 0]
        assert [negative for negative, _, _ in block["negatives"]] == wanted


def test_a_page_is_never_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(make_dataset(vectors=True, num=400))
    whole = page_of(run)
    monkeypatch.setattr(report, "LARGEST", len(whole) - 2000)
    smaller = page_of(run)
    assert len(smaller) <= len(whole) - 2000
    assert 0 < len(Told(smaller, run, "t2i").anchors) < run.dataset.pairs.num_texts


@pytest.mark.parametrize("captions", [True, False])
def test_vectors_show_ids(captions: bool) -> None:
    page = page_of(make_run(make_dataset(vectors=True, captions=captions)))
    _, values = unpacked(page)
    assert json.loads(embedded(page, "pictures")) == {}
    assert "i3" in values["image.id"]
    assert bool(values["text"]) == captions


def test_a_run_without_any_table_and_one_with_one_direction() -> None:
    rounds = make_rounds(make_dataset().pairs)
    _, values = unpacked(page_of(make_run(rounds=rounds[:1], dropped={}, vectors={})))
    assert not {"i2t", "t2i"} & values.keys()
    single = [replace(view, tables={d: t for d, t in view.tables.items() if d == "t2i"}) for view in rounds]
    _, values = unpacked(page_of(make_run(rounds=single)))
    assert "t2i" in values
    assert "i2t" not in values


def test_the_table_of_rounds_holds_the_figures() -> None:
    page = page_of()
    rows = re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', page, re.DOTALL)
    cells = {number: re.findall(r"<td[^>]*>([^<]*)</td>", row) for number, row in rows}
    # rsum dev, test; i2t R@1 dev; t2i R@1 test; hardness both; overlap i2t; mine, fit, evaluate, total
    assert cells["0"] == ["210.2", "201.5", "11.0", "12.5", "–", "–", "–", "–", "3.0", "1.5", "4.5"]
    assert cells["2"] == ["212.2", "203.5", "11.0", "12.5", "−0.250", "−0.250", "37 %", "2.0", "3.0", "1.5", "6.5"]
    assert "loss.form" in page
    assert "&lt;AOQ&gt;" in page
    spent = [
        replace(view, gpu_hours=hours) for view, hours in zip(make_run().rounds, (None, 0.0126, 12.5), strict=True)
    ]
    page = page_of(make_run(rounds=spent))
    assert ">GPU-hours</th>" in page
    last = [
        re.findall(r"<td[^>]*>([^<]*)</td>", row)[-1]
        for row in re.findall(r'<th scope="row">.*?</tr>', page, re.DOTALL)[:3]
    ]
    assert last == ["–", "0.013", "12.500"]


def test_charts_show_what_was_measured_and_nothing_else() -> None:
    run = make_run()
    made = {chart["id"]: chart for chart in charts(run.rounds)}
    assert set(made) == {
        "rsum", "recall-test", "recall-dev", "loss", "hardness-i2t", "hardness-t2i", "cocos", "overlap", "seconds",
        "bytes",
    }  # fmt: skip
    assert made["rsum"]["series"][1]["y"] == [210.25, 211.25, 212.25]
    assert made["overlap"]["series"][0]["y"] == [None, None, 37.0]
    assert [mark["x"] for mark in made["loss"]["marks"]] == [1.5, 2.5]
    assert "round 2 median" not in made["hardness-i2t"]["summary"]
    table = run.rounds[2].tables["i2t"]
    hardness = table.scores - table.lowest_positive[:, None]
    median = overview.number(float(np.nanmedian(hardness)), 3, signed=True)
    assert f"round 2: median {median}" in made["hardness-i2t"]["summary"]
    for chart in (*made.values(), *score_curves(run)):
        assert chart["summary"]
        for one in chart["series"]:
            assert len(one["x"]) == len(one["y"])
            if chart["y"] == "share":
                assert sum(one["y"]) == pytest.approx(1, abs=1e-3)
    (curve, _) = score_curves(run)
    assert curve["marks"][-1] == {"x": 0.5, "label": "max-score:score=0.5: 0.500"}
    bare = charts([replace(view, contributing={}, overlap={}, epochs=(), bytes={}) for view in run.rounds[:1]])
    assert [chart["id"] for chart in bare] == ["rsum", "recall-test", "recall-dev", "seconds"]


def test_the_map_shows_the_two_widest_directions() -> None:
    random = np.random.default_rng(0)
    flat = np.concatenate([random.normal(size=(300, 2)) * [3, 1], np.full((300, 1), 4.0)], axis=1)
    turned = np.linalg.qr(random.normal(size=(3, 3)))[0]
    vectors: Any = {"image": (flat[:100] @ turned).astype(np.float32), "text": (flat[100:] @ turned).astype(np.float32)}
    rows: Any = {"image": np.arange(100), "text": np.arange(200)}
    found, held = project(vectors, rows, 0)
    again, _ = project(vectors, rows, 0)
    assert held > 0.9
    unit = np.concatenate([v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors.values()]).astype(float)
    centred = unit - unit.mean(0)
    widest = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    np.testing.assert_allclose(
        np.abs(np.concatenate([found["image"], found["text"]])), np.abs(centred @ widest), atol=1e-5
    )
    for side in rows:
        np.testing.assert_array_equal(found[side], again[side])


def test_rounds_and_tables_that_do_not_fit_are_refused() -> None:
    run = make_run()
    rounds = list(run.rounds)
    with pytest.raises(BadInput, match="one round or more"):
        page_of(make_run(rounds=[]))
    with pytest.raises(BadInput, match="each once"):
        page_of(make_run(rounds=[rounds[1], rounds[1]]))
    table = rounds[1].tables["i2t"]
    with pytest.raises(BadInput, match="says its direction is i2t"):
        page_of(make_run(rounds=[replace(rounds[1], tables={"t2i": table})]))
    with pytest.raises(BadInput, match="has 11 anchors, but the dataset has 24 images"):
        page_of(make_run(rounds=[replace(rounds[1], tables={"i2t": replace(table, negatives=table.negatives[:11])})]))
    with pytest.raises(BadInput, match=r"names text row \d+, but the dataset has 49 texts"):
        page_of(make_run(rounds=[replace(rounds[1], tables={"i2t": replace(table, negatives=table.negatives + 9001)})]))
