"""The docs site: whole, without network, its settings those of the code, its commands ones that parse."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import parse, typed
from trainer import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
# Of the theme itself, as a link to click; nothing is loaded from it.
LINKED = {"https://squidfunk.github.io/mkdocs-material/"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return out


def test_it_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.name: path.read_text() for path in site.glob("*.html")}
    assert {name.replace(".md", ".html") for name in PAGES} <= set(pages)
    for name, page in pages.items():
        found = re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", page)
        assert set(found) <= LINKED, name
        assert 'class="mermaid"' not in page, f"{name}: drawing a diagram fetches a script"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_pictures_are_there(site: Path) -> None:
    pictures = [
        (page.name, picture)
        for page in site.glob("*.html")
        for picture in re.findall(r'<img[^>]*src="([^"]+)"', page.read_text())
    ]
    assert {"report-browser.png", "quality-seconds.png"} <= {picture for _, picture in pictures}
    assert not [found for found in pictures if not (site / found[1]).exists()]


def test_pages_hold_what_the_code_says(site: Path) -> None:
    api, settings, peers = ((site / f"{name}.html").read_text() for name in ("api", "settings", "peers"))
    assert all(
        f'id="{name}"' in api for name in ("miner.arrays.mine", "trainer.trained.fit", "trainer.trained.Trained.save")
    )
    assert "The k hardest negatives of every anchor" in api
    assert "simans_a" in settings
    assert "benchmarks/peers.py" in peers
    assert "shortfalls.parquet" in (site / "formats.html").read_text()
    for page in site.glob("*.html"):
        assert "--8&lt;--" not in page.read_text()
        assert "&lt;!-- says" not in page.read_text()


def test_every_setting_is_listed() -> None:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    text = pages.settings()
    from pipelines.settings import Settings

    for section, values in Settings.parse({}, "test").dump().items():
        for key in values:
            assert f"| `{key}` |" in text or section in ("data", "model", "loss"), f"[{section}] {key}"
        assert f"## [{section}]" in text
    assert "<function" not in text
    assert " at 0x" not in text
    for package in pages._CHOICES.values():
        for name in registry.names(package):
            config = registry.module(package, name).Config
            keys = getattr(config, "model_fields", None) or config.__dataclass_fields__
            assert re.search(rf"^### .*: {name.replace('_', '[-_]')}$", text, re.MULTILINE), name
            assert all(f"| `{key}` |" in text for key in keys), name


@pytest.mark.parametrize("name", PAGES)
def test_commands_on_a_page_parse(name: str) -> None:
    for words in typed((ROOT / "docs" / name).read_text()):
        parse(words)


def test_the_guides_have_commands() -> None:
    for name in ("embeddings.md", "model.md", "reproduction.md", "filters.md", "nightly.md"):
        assert list(typed((ROOT / "docs" / name).read_text())), name
