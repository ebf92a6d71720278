"""How long the report page of 100,000 anchors takes to load, and whether it scrolls without stutter.

20,000 made-up pictures with five captions each, two rounds of tables of 50, vectors of 64 numbers. The page is opened
from disk in a headless Chromium `--repeats` times. Loading ends when the list can be used. Scrolling: 120 steps of
a wheel through the whole list, and as many jumps; a frame is what the page itself needed from one animation frame to
the next, and the processor's time is the renderer's own, all threads, which other work on the machine hardly changes.
The same steps over a list of 100 anchors tell what this machine's browser needs anyway.

    python benchmarks/page.py [--images 20000] [--repeats 5] [--out page.html]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from miner.artifacts.ids import Ids
from miner.artifacts.negatives import NegativeTable
from miner.artifacts.pairs import Direction, Pairs, Side, sides
from pipelines.report import RoundView, RunView, render
from trainer.data import Dataset

WORDS = [
    "red",
    "green",
    "blue",
    "dark",
    "light",
    "cat",
    "dog",
    "bird",
    "fish",
    "tree",
    "car",
    "boat",
    "man",
    "woman",
    "child",
    "street",
    "table",
    "plate",
    "snow",
    "beach",
]
K = 50

FRAMES = """async (jumps) => {
  const list = document.getElementById("list");
  const [times, steps] = [[], 120];
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  await frame();
  let before = performance.now();
  for (let step = 0; step < steps; step += 1) {
    list.scrollTop = jumps ? ((step * 7919) % steps) / steps * list.scrollHeight : step * 240;
    await frame();
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times;
}"""
READY = "html[data-ready=yes]"


class Pictures:
    """Pictures made when they are asked for: two colours each."""

    dtype = np.dtype(np.uint8)

    def __init__(self, count: int) -> None:
        self.shape = (count, 64, 64, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        ramp = np.linspace(0, 1, 64)[:, None, None]
        made = [
            np.broadcast_to((ramp * random.integers(0, 256, 3) + (1 - ramp) * random.integers(0, 256, 3)), (64, 64, 3))
            for random in map(np.random.default_rng, rows.tolist())
        ]
        return np.stack(made).astype(np.uint8)


def made_up(images: int) -> RunView:
    random = np.random.default_rng(0)
    texts = 5 * images
    words = random.integers(0, len(WORDS), (texts, 9))
    captions = [" ".join(WORDS[word] for word in row) + f" {at}" for at, row in enumerate(words.tolist())]
    image_ids = Ids([f"COCO_train2014_{at:012d}" for at in range(images)])
    text_ids = Ids([str(at) for at in range(texts)])
    pairs = Pairs(image_ids, text_ids, np.repeat(np.arange(images), 5), np.arange(texts), tuple(captions))
    views = [RoundView(0, {"test": {"rsum": 300.0}}, {}, {}, {}, {"fit": 10.0})]
    for number in (1, 2):
        directions: tuple[Direction, Direction] = ("i2t", "t2i")
        tables = {direction: _table(pairs, direction, number) for direction in directions}
        views.append(RoundView(number, {"test": {"rsum": 300.0 + number}}, tables, {}, {}, {"fit": 10.0, "mine": 2.0}))
    vectors: dict[Side, Any] = {
        side: random.normal(size=(len(pairs.ids(side)), 64)).astype(np.float32) for side in ("image", "text")
    }
    return RunView(Dataset(pairs, Pictures(images), "made up", "train"), views, "100,000 anchors", vectors=vectors)


def _table(pairs: Pairs, direction: Direction, seed: int) -> NegativeTable:
    anchor, gallery = sides(direction)
    random = np.random.default_rng([seed, len(anchor)])
    shape = (len(pairs.ids(anchor)), K)
    scores = np.sort(random.normal(0.4, 0.1, shape).astype(np.float32), axis=1)[:, ::-1]
    negatives = random.integers(0, len(pairs.ids(gallery)), shape).astype(np.int32)
    lowest = random.normal(0.6, 0.1, shape[0]).astype(np.float32)
    return NegativeTable(direction, K, negatives, scores, lowest, np.full(shape[0], K, np.int32), {}, "made up")


def measure(page: Path, repeats: int) -> tuple[list[float], dict[str, list[float]], dict[str, list[float]]]:
    """(seconds until the list can be used, milliseconds of frames by kind of scrolling, and of the processor)."""
    from playwright.sync_api import sync_playwright

    quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync"]
    loads: list[float] = []
    frames: dict[str, list[float]] = {"wheel": [], "jumps": []}
    busy: dict[str, list[float]] = {"wheel": [], "jumps": []}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=False, args=[f"--{each}" for each in quiet]
        )
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            tab.goto(page.as_uri(), wait_until="commit")
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable")
            tab.wait_for_selector(READY)
            loads.append(tab.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000)
            tab.check("input[name=direction][value=t2i]", force=True)
            tab.evaluate("document.getElementById('anchors').scrollIntoView({behavior: 'instant'})")
            tab.wait_for_timeout(3000)  # charts that came into sight are drawn
            for kind in frames:
                before = _processor(session)
                taken = tab.evaluate(FRAMES, kind == "jumps")
                busy[kind].append(1000 * (_processor(session) - before) / len(taken))
                frames[kind] += taken
            tab.close()
        browser.close()
    return loads, frames, busy


def _processor(session: Any) -> float:
    """Seconds of processor time that the page's process has used."""
    found = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in found if one["name"] == "ProcessTime"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=lambda name: Path(name).resolve())
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for images in (asked.images, 20):
            run = made_up(images)
            began = time.perf_counter()
            text = render(run)
            seconds = time.perf_counter() - began
            page = (asked.out if images == asked.images else None) or Path(folder) / f"{images}.html"
            page.write_text(text, encoding="utf8")
            loads, frames, busy = measure(page, asked.repeats)
            print(f"{6 * images:,} anchors: written in {seconds:.1f} s, {len(text.encode()) / 1e6:.1f} MB")
            middle = np.median(loads)
            print(f"    usable after {middle:.2f} s (median of {asked.repeats}; {min(loads):.2f} to {max(loads):.2f})")
            for kind, times in frames.items():
                late = sum(time > 50 for time in times)
                print(
                    f"    {kind}: frames median {np.median(times):.1f} ms, 95% {np.percentile(times, 95):.1f}, "
                    f"{late} of {len(times)} above 50; processor {np.median(busy[kind]):.1f} ms a frame"
                )


if __name__ == "__main__":
    main()
