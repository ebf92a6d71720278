"""The README's section for somebody with a folder of pictures, done word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}


def commands() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## Your own pictures")[2].partition("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def write_photos(folder: Path, number: int = 60) -> None:
    """Squares and bars of a colour somewhere, and what a person would say of them."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["image,caption"]
    for at in range(number):
        colour, shape, place = rng.choice(list(COLOURS)), rng.choice(["square", "bar"]), rng.integers(4, 60)
        picture = np.full((96, 96, 3), 235, np.uint8)
        picture[place : place + 30, 8 : 38 if shape == "square" else 88] = COLOURS[colour]
        Image.fromarray(picture).save(folder / f"{at}.png")
        lines += [f"{at}.png,a {colour} {shape}", f"{at}.png,{shape} in {colour} at {place}"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def test_they_are_ten_at_most() -> None:
    assert 5 <= len(commands()) <= 10
    assert [line.split()[0] for line in commands()][:3] == ["python3", ".", "pip"]


@pytest.mark.heavy
def test_a_folder_of_pictures_becomes_a_model_and_a_page(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    # What is installed is this very environment: what the first three commands make.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    for line in commands()[3:]:
        words = shlex.split(line, comments=True)
        if words[:2] == ["pipelines", "serve"]:
            with subprocess.Popen([*words, "--port", "0"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True) as server:  # fmt: skip
                try:
                    assert server.stdout is not None
                    address = next(found[0] for said in server.stdout if (found := re.findall(r"http://\S+", said)))
                    with urllib.request.urlopen(address, timeout=30) as page:
                        assert b"<html" in page.read()[:2000]
                finally:
                    server.terminate()
            continue
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    print(f"{len(commands())} commands; {time.monotonic() - began:.0f} s after the installation")
    assert (tmp_path / "runs" / "run" / "best" / "manifest.json").exists()
    assert (tmp_path / "runs" / "run" / "report.html").stat().st_size > 100_000
