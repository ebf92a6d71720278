"""The report page: what it says is what the tables say, and no caption can do anything but be read."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miner.artifacts.errors import BadInput
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction, Pairs, sides
from pipelines.report import RoundView, anchors, overview, pictures, render
from trainer.data import Dataset

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<script>document.title='owned'</script>",
    "\"quoted\" 'single' `back` & &amp; <!-- --> ]]> ${1}",
    "مرحبا \u202e gnp.exe \u2067 שלום",
    "very long " * 400,
    "line\nbreak\ttab \u2028 \u0000 nul",
    "{{ 7 * 7 }} {% for %}",
    "http://example.com/x.js",
]
NUM_IMAGES = 12


def make_dataset(*, vectors: bool = False, captions: bool = True) -> Dataset:
    """12 images with 1, 2 or 3 captions; the caption of row 0 belongs to three images."""
    links = [("i0", "t0"), ("i1", "t0"), ("i5", "t0")]
    texts = [HOSTILE[0]]
    for image in range(NUM_IMAGES):
        for _ in range(1 + image % 3):
            links.append((f"i{image}", f"t{len(texts)}"))
            texts.append(HOSTILE[len(texts)] if len(texts) < len(HOSTILE) else f"caption {len(texts)}")
    ids = [f"t{row}" for row in range(len(texts))]
    pairs = Pairs.from_ids([f"i{i}" for i in range(NUM_IMAGES)], ids, links, texts=texts if captions else ())
    generator = np.random.default_rng(1)
    images: Any = generator.integers(0, 256, (NUM_IMAGES, 10, 14, 3), dtype=np.uint8)
    if vectors:
        images = generator.normal(size=(NUM_IMAGES, 7)).astype(np.float32)
    return Dataset(pairs, images, "<b>set</b>", "train")


def make_table(pairs: Pairs, direction: Direction, k: int, seed: int) -> NegativeTable:
    """Random scores; every third anchor lacks its last negative, anchor 1 has none at all."""
    anchor, gallery = sides(direction)
    generator = np.random.default_rng(seed)
    shape = (len(pairs.ids(anchor)), len(pairs.ids(gallery)))
    scores = generator.uniform(-1, 1, shape).astype(np.float32)
    own = pairs.belong(np.arange(pairs.num_images), np.arange(pairs.num_texts))
    own = own if anchor == "image" else own.T
    lowest = np.where(own, scores, np.inf).min(1).astype(np.float32)
    order = np.argsort(np.where(own, np.inf, -scores), axis=1, kind="stable")[:, :k]
    negatives, kept = order.astype(np.int32), np.take_along_axis(scores, order, 1)
    for row, start in [*((row, k - 1) for row in range(0, shape[0], 3)), (1, 0)]:
        negatives[row, start:], kept[row, start:] = -1, np.nan
    found = (negatives >= 0).sum(1, dtype=np.int32)
    return NegativeTable(direction, k, negatives, kept, lowest, found, {}, "fingerprint")


def make_rounds(pairs: Pairs, k: int = 4) -> list[RoundView]:
    tables: list[dict[Direction, NegativeTable]] = [
        {},
        {"i2t": make_table(pairs, "i2t", k, 1), "t2i": make_table(pairs, "t2i", k, 2)},
        {"i2t": make_table(pairs, "i2t", k, 3), "t2i": make_table(pairs, "t2i", k, 4)},
    ]
    return [
        RoundView(
            number,
            {"dev": {"rsum": 210.25 + number, "i2t_r1": 11.0}, "test": {"rsum": 201.5 + number, "t2i_r1": 12.5}},
            of,
            dict.fromkeys(of, -0.125 * number),
            {"i2t": 0.37} if number == 2 else {},
            {"fit": 3.0, "evaluate": 1.5} if not of else {"mine": 2.0, "fit": 3.0, "evaluate": 1.5},
        )
        for number, of in enumerate(tables)
    ]


def page_of(dataset: Dataset, rounds: list[RoundView] | None = None, **options: Any) -> str:
    chosen = {"title": "Run <i>1</i>", "settings": {"loss": {"form": "<AOQ>", "alpha": 0.3}, "k": [1, 2]}, **options}
    return render(dataset, rounds if rounds is not None else make_rounds(dataset.pairs), **chosen)


class Elements(HTMLParser):
    """Start tags with attributes, and the text inside each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and self.rawdata:
            tag, attributes = self.tags[-1]
            self.inside.append((tag, attributes, data))
        self.text += data


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    parsed: dict[str, Any] = json.loads(found[1])
    return parsed


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_every_anchor_shows_its_positives_and_what_was_mined(direction: Direction) -> None:
    dataset = make_dataset()
    rounds = make_rounds(dataset.pairs)
    data = data_of(page_of(dataset, rounds, num_anchors=100))
    side, other = sides(direction)
    shown = data["directions"][direction]["anchors"]
    assert sorted(anchor["row"] for anchor in shown) == list(range(len(dataset.pairs.ids(side))))
    ids = {side: dataset.pairs.ids(side), other: dataset.pairs.ids(other)}
    links = set(zip(dataset.pairs.image_rows.tolist(), dataset.pairs.text_rows.tolist(), strict=True))
    for anchor in shown:
        row = anchor["row"]
        own = [b if side == "image" else a for a, b in sorted(links) if (a if side == "image" else b) == row]
        assert anchor["positives"] == own
        assert anchor["num_positives"] == len(own)
        assert set(anchor["rounds"]) == {"1", "2"}  # round 0 mined nothing
        for number in (1, 2):
            table, block = rounds[number].tables[direction], anchor["rounds"][str(number)]
            there = [n for n in table.negatives[row].tolist() if n >= 0]
            assert [negative[0] for negative in block["negatives"]] == there
            assert (block["found"], block["k"]) == (len(there), table.k)
            lowest, above = float(table.lowest_positive[row]), 0
            assert block["lowest"] == pytest.approx(lowest, abs=1e-6)
            for rank, (negative, score, hardness, before) in enumerate(block["negatives"]):
                true = float(table.scores[row, rank])
                above += true > lowest
                assert score == pytest.approx(true, abs=1e-6)
                assert hardness == pytest.approx(true - lowest, abs=1e-6)
                assert data[f"{other}s"][str(negative)]["id"] == ids[other][negative]
                previous = rounds[1].tables[direction].negatives[row].tolist()
                expected = previous.index(negative) + 1 if negative in previous else 0
                assert before == (None if number == 1 else expected)
            assert block["above"] == above


def test_a_missing_slot_is_missing_and_never_the_last_row() -> None:
    dataset = make_dataset()
    data = data_of(page_of(dataset, num_anchors=100))
    blocks = {anchor["row"]: anchor["rounds"]["1"] for anchor in data["directions"]["i2t"]["anchors"]}
    assert blocks[1] == {**blocks[1], "found": 0, "above": 0, "negatives": []}
    assert [len(blocks[row]["negatives"]) for row in (2, 3)] == [4, 3]
    assert all(negative[0] >= 0 for block in blocks.values() for negative in block["negatives"])


def test_pictures_are_there_once_and_without_loss() -> None:
    dataset = make_dataset()
    page = page_of(dataset, num_anchors=100)
    sources = re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", page)
    assert len(sources) == len(set(sources)) == NUM_IMAGES
    for row, item in data_of(page)["images"].items():
        png = Image.open(io.BytesIO(base64.b64decode(item["src"].partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(png.convert("RGB")), dataset.images[np.array([int(row)])][0])


def test_large_pictures_shrink_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 200, 120, 3), dtype=np.uint8)

    def sizes() -> set[tuple[int, int]]:
        found = pictures.data_uris(images, [4, 0, 4])
        assert list(found) == [0, 4]
        return {Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in found.values()}

    assert sizes() == {(58, 96)}
    monkeypatch.setattr(pictures, "BUDGET", 9_000)
    assert max(next(iter(sizes()))) < 96


def test_hostile_captions_are_text_everywhere() -> None:
    dataset = make_dataset()
    page = page_of(
        dataset, num_anchors=100, title=HOSTILE[0], settings={"a": HOSTILE[1], HOSTILE[2]: {"b": HOSTILE[0]}}
    )
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert not [tag for tag, _ in elements.tags if tag in ("img", "b", "i", "iframe", "object")]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    block = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert block
    assert not set("<>&'") & set(block[1])
    data = data_of(page)
    for row, text in enumerate(dataset.pairs.texts):
        assert data["texts"][str(row)]["text"] == text
    assert html.escape("<b>set</b>") in page


def test_nothing_is_loaded_and_the_policy_allows_our_own_script_and_style_alone() -> None:
    page = page_of(make_dataset())
    elements = Elements(page)
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    parts = {part.split()[0]: part.split()[1:] for part in policy.split(";")}
    assert parts["default-src"] == ["'none'"]
    assert parts["img-src"] == ["data:"]
    for tag in ("style", "script"):
        text = next(text for name, a, text in elements.inside if name == tag and "type" not in a and text.strip())
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts[f"{tag}-src"] == [f"'sha256-{digest}'"]
    for _, attributes in elements.tags:
        assert "style" not in attributes  # the policy would block it
        for name in ("src", "href", "action"):
            assert re.match(r"#|data:|$", attributes.get(name) or "")
    own = "".join(text for _, attributes, text in elements.inside if "type" not in attributes)
    assert not re.search(r"https?:|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(", own)


def test_the_same_arguments_give_the_same_page_and_the_seed_chooses() -> None:
    dataset = make_dataset()
    first = page_of(dataset, num_anchors=3, seed=5)
    assert first == page_of(make_dataset(), make_rounds(dataset.pairs)[::-1], num_anchors=3, seed=5)
    chosen = {
        tuple(a["row"] for a in data_of(page_of(dataset, num_anchors=3, seed=seed))["directions"]["t2i"]["anchors"])
        for seed in range(5)
    }
    assert len(chosen) > 1


def test_anchors_are_the_drawn_ones_and_the_hardest_of_the_last_table() -> None:
    pairs = make_dataset().pairs
    table = make_table(pairs, "t2i", 3, 9)
    margin = [
        float(s[0] - p) if n[0] >= 0 else -9.0
        for s, n, p in zip(table.scores, table.negatives, table.lowest_positive, strict=True)
    ]
    chosen = anchors.choose(table, 5, seed=0, num_hardest=2)
    by_margin = sorted(range(len(margin)), key=lambda row: (-margin[row], row))
    assert [row for row, hardest in chosen if hardest] == by_margin[:2]
    rows = [row for row, _ in chosen]
    assert rows == [row for row in by_margin if row in rows]
    assert 5 <= len(rows) == len(set(rows)) <= 7
    assert anchors.share_outscored(table) == pytest.approx(np.mean([value > 0 for value in margin]))


def test_only_the_first_ranks_are_shown_and_all_are_counted() -> None:
    dataset = make_dataset()
    rounds = make_rounds(dataset.pairs)
    data = data_of(page_of(dataset, rounds, num_anchors=100, num_ranks=2))
    for anchor in data["directions"]["t2i"]["anchors"]:
        block = anchor["rounds"]["2"]
        assert len(block["negatives"]) == min(2, block["found"])
        table = rounds[2].tables["t2i"]
        row = anchor["row"]
        assert block["above"] == int((table.scores[row] > table.lowest_positive[row]).sum())


@pytest.mark.parametrize("captions", [True, False])
def test_vectors_show_ids(captions: bool) -> None:
    data = data_of(page_of(make_dataset(vectors=True, captions=captions), num_anchors=100))
    assert not [item for item in data["images"].values() if "src" in item]
    assert data["images"]["3"]["id"] == "i3"
    assert data["texts"]["9"]["text"] == ("caption 9" if captions else "t9")


def test_a_run_without_any_table_and_one_with_one_direction() -> None:
    dataset = make_dataset()
    rounds = make_rounds(dataset.pairs)
    bare = page_of(dataset, rounds[:1])
    assert data_of(bare)["directions"] == {"i2t": {"anchors": []}, "t2i": {"anchors": []}}
    assert "Hardness</th>" not in bare
    single = [replace(view, tables={d: t for d, t in view.tables.items() if d == "t2i"}) for view in rounds]
    directions = data_of(page_of(dataset, single))["directions"]
    assert not directions["i2t"]["anchors"]
    assert directions["t2i"]["anchors"]


def test_the_table_of_rounds_holds_the_figures() -> None:
    page = page_of(make_dataset())
    rows = re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', page, re.DOTALL)
    cells = {number: re.findall(r"<td[^>]*>([^<]*)</td>", row) for number, row in rows}
    # rsum dev, test; i2t R@1 dev; t2i R@1 test; hardness both; overlap i2t; mine, fit, evaluate, total
    assert cells["0"] == ["210.2", "201.5", "11.0", "12.5", "–", "–", "–", "–", "3.0", "1.5", "4.5"]
    assert cells["2"] == ["212.2", "203.5", "11.0", "12.5", "−0.250", "−0.250", "37 %", "2.0", "3.0", "1.5", "6.5"]
    assert "loss.form" in page
    assert "&lt;AOQ&gt;" in page


def test_a_chart_breaks_its_line_at_a_gap_and_keeps_inside_its_box() -> None:
    values = (None, -0.2, float("nan"), 0.1, 0.3)
    made = overview.chart("c", [0, 1, 2, 3, 4], [overview.Series("one", "first", values)], 3, signed=True)
    (line,) = made.lines
    assert [run.count(",") for run in line["runs"]] == [2]
    assert line["dots"][0][2] == "one, round 1: −0.200"
    assert all(0 < x < made.width and 0 < y < made.height for x, y, _ in line["dots"])
    heights = [y for _, y, _ in line["dots"]]
    assert heights == sorted(heights, reverse=True)
    assert made.zero is not None
    single = overview.chart("c", [0], [overview.Series("one", "first", (5.0,))], 1)
    assert len(single.lines[0]["dots"]) == 1


def test_bands_of_hardness_suit_what_is_shown() -> None:
    def with_hardness(*values: float) -> float:
        block = {"negatives": [[0, 0.0, value, None] for value in values]}
        return anchors.hardness_step({"i2t": [{"rounds": {"1": block}}]})

    assert with_hardness(0.3, -0.3) == pytest.approx(0.1)
    assert with_hardness(12.0, 13.0) == pytest.approx(5.0)
    assert with_hardness() == with_hardness(0.0) == pytest.approx(0.1)


def test_rounds_and_tables_that_do_not_fit_are_refused() -> None:
    dataset = make_dataset()
    rounds = make_rounds(dataset.pairs)
    with pytest.raises(BadInput, match="one round or more"):
        page_of(dataset, [])
    with pytest.raises(BadInput, match="each once"):
        page_of(dataset, [rounds[1], rounds[1]])
    table = rounds[1].tables["i2t"]
    with pytest.raises(BadInput, match="says its direction is i2t"):
        page_of(dataset, [replace(rounds[1], tables={"t2i": table})])
    with pytest.raises(BadInput, match="has 11 anchors, but the dataset has 12 images"):
        page_of(dataset, [replace(rounds[1], tables={"i2t": replace(table, negatives=table.negatives[:11])})])
    with pytest.raises(BadInput, match=f"names text row {table.negatives.max() + 9001}, but the dataset has 25 texts"):
        page_of(dataset, [replace(rounds[1], tables={"i2t": replace(table, negatives=table.negatives + 9001)})])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page was not opened in a browser")
def test_a_browser_draws_every_anchor_and_runs_no_caption(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    dataset = make_dataset()
    page = tmp_path / "report.html"
    page.write_text(page_of(dataset, num_anchors=100), encoding="utf8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"{page.as_uri()}#i2t/2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    drawn = Elements(done.stdout)
    assert len([1 for tag, a in drawn.tags if tag == "li" and a.get("class") == "anchor"]) == NUM_IMAGES
    assert len([1 for tag, a in drawn.tags if tag == "li" and a.get("class") == "missing"]) == 5  # rows 0, 1, 3, 6, 9
    assert {a.get("src", "")[:10] for tag, a in drawn.tags if tag == "img"} == {"data:image"}  # type: ignore[index]
    assert not [name for _, attributes in drawn.tags for name in attributes if name.startswith("on")]
    assert re.search(r"<title>Run &lt;i&gt;1&lt;/i&gt;</title>", done.stdout)
    assert HOSTILE[0] in drawn.text
