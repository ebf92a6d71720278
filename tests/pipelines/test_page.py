"""The page in a real browser: it opens from disk in silence, and does what it says by mouse and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from miner.artifacts.pairs import Pairs
from miner.cli import main as miner
from miner.filters import by_verdicts
from miner.verdicts import read_verdicts
from tests.pipelines.pages import HOSTILE, NUM_IMAGES, Seen, browser, make_dataset, make_run, needs_browser, page_of

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = needs_browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(), encoding="utf8")
    return path


@pytest.fixture
def seen(chromium: Any, html: Path) -> Iterator[Seen]:
    found = Seen(chromium, html)
    yield found
    # What nobody looks for is looked for after every test: the console is silent, no request is made, nothing ran.
    assert found.said == []
    assert {url.partition(":")[0] for url in found.asked} <= {"file", "data", "blob"}
    assert found.page.evaluate("window.owned") is None
    found.close()


def show_all(page: Any) -> None:
    """Scroll to the end in steps, until every chart is drawn."""
    page.evaluate("""async () => {
        for (let y = 0; y < document.body.scrollHeight; y += 400) {
            window.scrollTo({ top: y, behavior: "instant" });
            await new Promise((done) => setTimeout(done, 20));
        }
    }""")
    expect(page.locator(".plot:not(:has(.main-svg))")).to_have_count(0, timeout=30_000)


def counted(page: Any, number: int) -> None:
    """Wait until so many anchors are listed."""
    expect(page.locator("#count")).to_have_text(re.compile(rf"{number} of \d+ anchors"))


def test_it_opens_from_disk_in_silence_and_draws_every_chart(seen: Seen) -> None:
    show_all(seen.page)
    assert seen.page.locator(".plot").count() == 13  # ten of rounds, two of scores, the map
    assert seen.page.locator("#count").text_content() == f"{NUM_IMAGES} of {NUM_IMAGES} anchors"
    assert 10 < seen.page.locator("#space .row").count() < NUM_IMAGES  # those in sight alone
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_caption_or_id_does_anything(seen: Seen) -> None:
    page = seen.page
    for direction in ("t2i", "i2t"):
        page.check(f"input[name=direction][value={direction}]", force=True)
        page.focus("#list")
        for _ in range(25 if direction == "i2t" else 49):
            page.keyboard.press("ArrowDown")
        for summary in page.locator("#detail summary").all():
            summary.click()
    shown = page.evaluate("document.documentElement.outerHTML")
    assert page.locator("iframe, object, embed, base, form[action]").count() == 0
    assert page.locator("script").count() <= 6  # our five, and Plotly once it runs
    assert page.locator("script[src]").count() == 0
    assert "onerror" not in page.evaluate("[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())")
    assert len(shown) > 1000
    show_all(page)
    page.hover("#map .main-svg >> nth=0")
    page.wait_for_timeout(50)
    page.fill("#query", "</script>")
    pairs = make_dataset().pairs
    having = {text for text, words in enumerate(pairs.texts) if "</script>" in words}
    counted(page, len(set(pairs.image_rows[np.isin(pairs.text_rows, list(having))].tolist())))
    assert any(HOSTILE[0] in text for text in page.locator("#detail .caption").all_text_contents())


def test_filter_sort_and_what_is_outscored(seen: Seen) -> None:
    page = seen.page
    run = make_run()
    table = run.rounds[2].tables["i2t"]
    margin = np.where(table.negatives[:, 0] >= 0, table.scores[:, 0] - table.lowest_positive, -np.inf)
    page.select_option("#sort", "margin")
    wanted = sorted(range(24), key=lambda row: (-margin[row], row))
    marks = page.evaluate(
        "() => [...document.querySelectorAll('#space .row')].sort((a, b) => a.dataset.at - b.dataset.at)"
        ".map((row) => row.querySelector('.row-mark').textContent)"
    )
    assert [float(mark.replace("−", "-") or "-inf") for mark in marks] == pytest.approx(
        [float(margin[row]) for row in wanted[: len(marks)]], abs=0.0051
    )
    page.check("#only-above")
    assert page.locator("#count").text_content() == f"{int((margin > 0).sum())} of 24 anchors"
    page.uncheck("#only-above")
    page.fill("#query", "i7")
    counted(page, 1)
    assert page.locator("#detail .id").first.text_content() == "i7"
    page.fill("#query", "nobody wrote this")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.locator("#detail").inner_html() == ""


def test_by_keyboard_alone(seen: Seen) -> None:
    page = seen.page
    page.focus("#list")
    first = page.get_attribute("#list", "aria-activedescendant")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert (first, page.get_attribute("#list", "aria-activedescendant")) == ("row-0", "row-1")
    page.keyboard.press("End")
    assert page.get_attribute("#list", "aria-activedescendant") == "row-23"
    page.keyboard.press("Home")
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("1")
    each = "(tile) => tile.querySelector('[aria-pressed=true]')?.textContent"
    pressed = f"[...document.querySelectorAll('#detail .tile')].map({each})"
    assert page.evaluate(pressed)[:3] == [None, "false negative", None]
    page.keyboard.press("3")
    assert page.evaluate(pressed)[1] == "too easy"
    page.keyboard.press("3")
    assert page.evaluate(pressed)[1] is None
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("j")
    assert page.input_value("#query") == "j"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"


def test_rounds_history_dropped_and_hubs(seen: Seen) -> None:
    page = seen.page
    page.goto(page.url.split("#")[0] + "#i2t/1/i2")
    page.wait_for_selector("html[data-ready=yes]")
    assert page.locator("#detail .id").first.text_content() == "i2"
    assert "round 1" in page.locator("#detail h4").nth(1).text_content()
    page.check("input[name=round][value='2']", force=True)
    page.click("#detail .cut summary")
    reasons = page.locator("#detail .cut td:last-child").all_text_contents()
    assert reasons == ["same-text", HOSTILE[1]]
    page.click("#detail .history summary")
    table = make_run().rounds[2].tables["i2t"]
    heads = page.locator("#detail .history th").all_text_contents()
    assert heads == ["negative", "round 1", "round 2"]
    last = [text for text in page.locator("#detail .history td:last-child").all_text_contents() if ">" not in text]
    assert sorted(map(int, last)) == list(range(1, int((table.negatives[2] >= 0).sum()) + 1))
    page.locator("#hubs-table button").first.click()
    hub = np.bincount(table.negatives[table.negatives >= 0]).max()
    counted(page, hub)
    page.click("#hub-clear")
    counted(page, 24)


def test_light_and_dark_by_the_system_and_by_the_button(seen: Seen) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)
        found[scheme] = seen.page.evaluate(paper)
    seen.page.click("#theme")
    found["pressed"] = seen.page.evaluate(paper)
    seen.page.click("#theme")
    found["again"] = seen.page.evaluate(paper)
    assert found["light"] == found["pressed"] != found["dark"] == found["again"]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.heavy),
        pytest.param(390, "light", marks=pytest.mark.heavy),
    ],
)
def test_axe_finds_nothing_serious(chromium: Any, html: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    seen = Seen(chromium, html, color_scheme=scheme, bypass_csp=True)  # axe itself is a script of nobody's
    seen.page.set_viewport_size({"width": width, "height": 900})
    show_all(seen.page)
    for summary in seen.page.locator("summary").all():
        summary.click()
    seen.page.locator(".verdict button").first.click()
    found = Axe().run(seen.page).response["violations"]
    told = [(one["id"], one["impact"], [node["html"][:160] for node in one["nodes"]][:3]) for one in found]
    assert [one for one in told if one[1] in ("serious", "critical")] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.close()


def test_verdicts_are_kept_exported_taken_back_and_read_again(chromium: Any, html: Path, tmp_path: Path) -> None:
    seen = Seen(chromium, html)
    page = seen.page
    page.locator("#detail .tile >> nth=0 >> button").nth(0).click()
    page.locator("#detail .tile >> nth=1 >> button").nth(2).click()
    page.locator("#suspects-list .suspect >> nth=2 >> button").nth(2).click()
    assert page.locator("#verdict-count").text_content().startswith("3 verdicts: 1 false negative")
    with page.expect_download() as download:
        page.click("#verdict-export")
    path = tmp_path / "verdicts.jsonl"
    download.value.save_as(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(read_verdicts(path, make_dataset().pairs, "i2t")) == len(lines) == 3
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    assert page.locator("#verdict-count").text_content().startswith("3 verdicts")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#verdict-clear")
    assert page.locator("#verdict-count").text_content() == "no verdicts yet"
    path.write_text(path.read_text() + "no verdict\n")
    page.set_input_files("#verdict-import", path)
    expect(page.locator("#verdict-status")).to_contain_text("1 line that is none")
    assert page.locator("#verdict-count").text_content().startswith("3 verdicts")
    page.check("#only-judged")
    anchors = {line["anchor_id"] for line in lines}
    assert page.locator("#count").text_content() == f"{len(anchors)} of 24 anchors"
    seen.close()


def test_two_tabs_of_one_page_keep_both_verdicts(chromium: Any, html: Path) -> None:
    seen = Seen(chromium, html)
    other = seen.context.new_page()
    other.goto(html.as_uri())
    other.wait_for_selector("html[data-ready=yes]")
    seen.page.locator("#detail .tile >> nth=0 >> button").nth(0).click()
    expect(other.locator("#verdict-count")).to_contain_text("1 verdict: 1 false negative")
    other.locator("#detail .tile >> nth=1 >> button").nth(1).click()
    seen.page.reload()
    expect(seen.page.locator("#verdict-count")).to_contain_text("2 verdicts: 1 false negative, 1 fine")
    seen.close()


def test_exported_verdicts_change_the_next_mined_table(chromium: Any, tmp_path: Path) -> None:
    """From vectors to a page, by clicks to a file, and with it through `miner filter`."""
    random = np.random.default_rng(0)
    folder = tmp_path / "vectors"
    folder.mkdir()
    vectors = {side: random.normal(size=(30, 6)).astype(np.float32) for side in ("images", "texts")}
    for name, values in vectors.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "pairs.csv").write_text("image_id,text_id\n" + "".join(f"{row},{row}\n" for row in range(30)))
    mined = CliRunner().invoke(
        miner, ["mine", str(folder), "--k", "4", "--num-candidates", "9", "--out", str(tmp_path / "mined")]
    )
    assert mined.exit_code == 0, mined.output
    page = _page_of_tables(tmp_path / "mined", vectors)
    (tmp_path / "report.html").write_text(page, encoding="utf8")
    seen = Seen(chromium, tmp_path / "report.html")
    seen.page.locator("#detail .tile >> nth=0 >> button").nth(0).click()
    seen.page.locator("#detail .tile >> nth=1 >> button").nth(1).click()
    seen.page.locator("#detail .tile >> nth=2 >> button").nth(2).click()
    anchor = seen.page.locator("#detail .id").first.text_content()
    with seen.page.expect_download() as download:
        seen.page.click("#verdict-export")
    path = tmp_path / "verdicts.jsonl"
    download.value.save_as(path)
    seen.close()
    said = ["filter", str(folder), "--candidates", str(tmp_path / "mined" / "candidates"), "--direction", "i2t"]
    rule = ["--rule", f"verdicts:file={path}", "--k", "4", "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(miner, [*said, *rule])
    assert done.exit_code == 0, done.output
    before, after = (
        pd.read_parquet(tmp_path / where / "i2t" / "negatives.parquet", filters=[("anchor_id", "==", anchor)])
        for where in ("mined", "again")
    )
    old, new = before.negative_id.tolist(), after.negative_id.tolist()
    assert new[:2] == [old[1], old[3]]
    assert len(new) == 4
    assert not {old[0], old[2]} & set(new)
    assert [rule.name for rule in by_verdicts(path)] == ["verdicts:false_negative", "verdicts:too_easy"]


def _page_of_tables(mined: Path, vectors: dict[str, np.ndarray]) -> str:
    from miner.artifacts.negatives import NegativeTable
    from pipelines.report import RoundView, RunView, render
    from trainer.data import Dataset

    ids = [str(row) for row in range(30)]
    pairs = Pairs.from_ids(ids, ids, zip(ids, ids, strict=True))
    tables: Any = {each: NegativeTable.open(mined / each, pairs) for each in ("i2t", "t2i")}
    view = RoundView(1, {"test": {"rsum": 1.0}}, tables, {}, {}, {})
    both: Any = {"image": vectors["images"], "text": vectors["texts"]}
    return render(RunView(Dataset(pairs, vectors["images"], "made", "train"), [view], "made", vectors=both))
