"""What the README and the packaging say about the tree is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("miner", "trainer", "pipelines")


def test_every_package_is_listed_for_installation() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for top in PACKAGES for p in (ROOT / top).rglob("__init__.py")}
    assert set(listed) == found


def test_the_readme_tree_names_every_module_once() -> None:
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].partition("## A run folder")[0]
    named = [line.split()[0] for line in tree.splitlines() if line.startswith("    ")]
    modules = [p.name for top in PACKAGES for p in (ROOT / top).rglob("*.py") if not p.name.startswith("__")]
    assert sorted(name for name in named if name.endswith(".py")) == sorted(modules)


def test_the_bundled_data_is_small_and_licensed() -> None:
    folder = ROOT / "trainer" / "data" / "emoji_files"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5_000_000
    notice = (folder / "LICENSE-NOTICE.txt").read_text()
    assert all(word in notice for word in ("MIT", "Unicode", "Microsoft"))


def test_the_readme_example_runs(tmp_path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", example],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "negative_id" in done.stdout
    assert (tmp_path / "negatives" / "t2i" / "manifest.json").exists()
    assert (tmp_path / "checkpoint" / "manifest.json").exists()
