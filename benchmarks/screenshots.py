"""The pictures of the report page in the README, from a real run.

    python benchmarks/screenshots.py RUN_DIR [--out docs] [--browser chromium]

Writes the page of the run and opens it in a headless Chromium at 1440 pixels, light, and at 390 pixels, dark: the
overview, and the browser of anchors with two verdicts given.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.places import place
from pipelines.report import render
from pipelines.report.of_run import view_of

VIEWS = (("overview", "body", 1440, 1150, "light"), ("browser", "#anchors", 1440, 1000, "light"),
         ("phone", "#anchors", 390, 1250, "dark"))  # fmt: skip


def shoot(chromium: Any, page: Path, anchor: str, width: int, height: int, scheme: str) -> bytes:
    tab = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    for number, verdict in ((0, 0), (2, 1)):
        tab.locator(f"#detail .tile >> nth={number} >> button").nth(verdict).click()
    tab.evaluate("(where) => document.querySelector(where).scrollIntoView({ behavior: 'instant' })", anchor)
    tab.mouse.move(0, 0)
    if anchor == "body":
        tab.locator(".plot:has(.main-svg)").nth(2).wait_for()
    tab.wait_for_timeout(1500)
    picture: bytes = tab.screenshot()
    tab.close()
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--browser", default=shutil.which("chromium"))
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    asked.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        page.write_text(render(view_of(place(asked.run_dir))), encoding="utf8")
        chromium = driver.chromium.launch(executable_path=asked.browser, chromium_sandbox=False, args=["--disable-gpu"])
        for name, anchor, width, height, scheme in VIEWS:
            taken = Image.open(io.BytesIO(shoot(chromium, page, anchor, width, height, scheme)))
            # A palette makes a third of the bytes; nobody sees the difference at this size.
            path = asked.out / f"report-{name}.png"
            taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} KB")
        chromium.close()


if __name__ == "__main__":
    main()
