"""A small run as the page takes it, with hostile captions; what a page holds; a browser to open it in."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.artifacts.dropped import DroppedRows
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction, Pairs, sides
from pipelines.report import RoundView, RunView, render
from trainer.data import Dataset

# What somebody may have written into a caption or an id to make a page do something.
HOSTILE = [
    "</script><img src=x onerror=window.owned=1>",
    "<script>window.owned=2</script>",
    "\"quoted\" 'single' `back` & &amp; <!-- --> ]]> ${window.owned=3}",
    "مرحبا \u202e gnp.exe \u2067 שלום",
    "very long " * 400,
    "line\nbreak\ttab \u2028 \u0000 nul",
    "{{ 7 * 7 }} {% for %} {{constructor.constructor('window.owned=4')()}}",
    "http://example.com/x.js",
    "javascript:window.owned=5",
    "<svg onload=window.owned=6><a xlink:href='javascript:window.owned=7'>x</a></svg>",
    "<iframe srcdoc='<script>parent.owned=8</script>'></iframe>",
    "' onfocus=window.owned=9 autofocus x='",
    '" onmouseover="window.owned=10" style="position:fixed;inset:0',
    "<style>*{display:none}</style><base href=http://example.com/>",
    "<b>bold</b><br><sub>sub</sub><a href='http://example.com'>link</a>",
    "__proto__",
    "constructor",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    '=HYPERLINK("http://example.com")',
    "&lt;img src=x onerror=window.owned=11&gt;",
    "data:text/html,<script>window.owned=12</script>",
]
NUM_IMAGES = 24


def make_dataset(*, vectors: bool = False, captions: bool = True, num: int = NUM_IMAGES) -> Dataset:
    """Images with 1, 2 or 3 captions; the caption of row 0 belongs to three of them. Some ids are hostile too."""
    images = [f"i{row}" if row % 4 else f"<i>{row}</i>" for row in range(num)]
    links = [(images[0], "t0"), (images[1], "t0"), (images[5], "t0")]
    texts = [HOSTILE[0]]
    for row in range(num):
        for _ in range(1 + row % 3):
            links.append((images[row], f"t{len(texts)}"))
            texts.append(HOSTILE[len(texts)] if len(texts) < len(HOSTILE) else f"caption {len(texts)}")
    ids = [f"t{row}" for row in range(len(texts))]
    pairs = Pairs.from_ids(images, ids, links, texts=texts if captions else ())
    generator = np.random.default_rng(1)
    pixels: Any = generator.integers(0, 256, (num, 10, 14, 3), dtype=np.uint8)
    if vectors:
        pixels = generator.normal(size=(num, 7)).astype(np.float32)
    return Dataset(pairs, pixels, "<b>set</b>", "train")


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


def make_rounds(pairs: Pairs, k: int = 6) -> list[RoundView]:
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
            {"i2t_online": 2.5} if number == 2 else {},
            [{"epoch": number, "loss": 2.0 - number, "parts": {"online_text": 1.0}}],
            {"fit": 1000},
        )
        for number, of in enumerate(tables)
    ]


def make_dropped(pairs: Pairs, direction: Direction) -> DroppedRows:
    """Two dropped of each of the first five anchors, rank 0 and 3, by two rules with hostile names."""
    anchors = np.repeat(np.arange(5), 2)
    size = len(pairs.ids(sides(direction)[1]))
    scores = np.linspace(2, 1, 10).astype(np.float32)
    return DroppedRows(
        anchors, (anchors * 3 + 7) % size, np.tile([0, 3], 5), scores, np.tile([0, 1], 5), ("same-text", HOSTILE[1])
    )


def make_run(dataset: Dataset | None = None, rounds: list[RoundView] | None = None, **more: Any) -> RunView:
    """With vectors for both sides, unless `vectors` are given."""
    dataset = dataset or make_dataset()
    pairs = dataset.pairs
    random = np.random.default_rng(9)
    vectors = {s: random.normal(size=(len(pairs.ids(s)), 5)).astype(np.float32) for s in ("image", "text")}
    given = {
        "title": "Run <i>1</i>",
        "settings": {"loss": {"form": "<AOQ>", "alpha": 0.3}, "k": [1, 2], "mine": {"rules": ["max-score:score=0.5"]}},
        "dropped": {direction: make_dropped(pairs, direction) for direction in ("i2t", "t2i")},
        "vectors": vectors,
        **more,
    }
    return RunView(dataset, make_rounds(pairs) if rounds is None else rounds, **given)


def page_of(run: RunView | None = None, **options: Any) -> str:
    return render(run or make_run(), **options)


def embedded(page: str, name: str) -> str:
    """What a script element holds."""
    found = re.search(rf'<script type="application/[a-z-]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found, name
    return found[1]


def unpacked(page: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, values) that a page holds."""
    data = gzip.decompress(base64.b64decode(embedded(page, "packed")))
    length = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + length])
    return {
        name: np.frombuffer(data, "<" + kind, size, 4 + length + offset)
        for name, (kind, offset, size) in head["arrays"].items()
    }, head["values"]


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


needs_browser = pytest.mark.skipif(
    _chromium() is None, reason="no Chromium on this machine: the page was not opened in a browser (apt has one)"
)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, as Playwright drives it."""
    from playwright.sync_api import sync_playwright

    quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    quiet += ["disable-component-update", "disable-sync"]
    with sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=_chromium(), chromium_sandbox=False, args=[f"--{each}" for each in quiet]
        )
        try:
            yield found
        finally:
            found.close()


class Seen:
    """A page in a tab, with what its console said."""

    def __init__(self, chromium: Any, where: Path | str, **options: Any) -> None:
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(where.as_uri() if isinstance(where, Path) else where)
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def close(self) -> None:
        self.context.close()
