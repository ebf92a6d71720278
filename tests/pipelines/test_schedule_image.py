"""The recipe of the image, as far as it can be checked without building it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
KNOWN = {"FROM", "RUN", "ARG", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of(word: str) -> list[str]:
    return [rest for each, rest in instructions() if each == word]


def test_every_line_is_an_instruction() -> None:
    assert {word for word, _ in instructions()} <= KNOWN
    assert instructions()[0] == ("FROM", "python:3.11-slim")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=3.11"


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last line that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kept, pattern = line.startswith("!"), line.removeprefix("!")
        glob = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(glob + "(/.*)?", path):
            out = not kept
    return out


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [source for rest in of("COPY") for source in rest.split()[:-1]]
    assert {"pyproject.toml", "requirements.lock", "miner", "trainer", "pipelines"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    # All that setuptools wants to build the package with.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["readme"] in copied
    assert {name for name in project["license-files"] if "/" not in name} <= set(copied)


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/demo/log.jsonl", "tests/conftest.py", ".env", "miner/.env", "id_rsa",
     "pipelines/__pycache__/cli.cpython-311.pyc", "shared/data/x"],
)  # fmt: skip
def test_nothing_else_gets_into_the_build(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("path", ["pipelines/demo.toml", "trainer/data/emoji_files/x.png", "miner/index/flat.py"])
def test_package_data_gets_into_the_build(path: str) -> None:
    assert not ignored(path)


def test_versions_are_those_of_the_lock_file_and_extras_exist() -> None:
    (install,) = [rest for rest in of("RUN") if "pip install" in rest]
    assert "--constraint requirements.lock" in install
    assert "--no-cache-dir" in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    match = re.search(r"\.\[([\w,${}]+)\]", install)
    assert match is not None
    assert {name for name in match[1].split(",") if "$" not in name} <= set(extras)
    # KubeRay submits over the dashboard, which only Ray with its default extra has.
    assert any("default" in each for each in extras["cluster"])
    assert {"cpu", "gpu"} <= set(extras)
    assert "FAISS=cpu" in of("ARG")


def test_it_runs_as_nobody_special_and_holds_no_secret() -> None:
    assert of("USER") == ["1000:1000"]
    assert of("ENTRYPOINT") == ['["pipelines"]']
    assert [word for word, _ in instructions()][-2:] == ["ENTRYPOINT", "CMD"]
    (environment,) = of("ENV")
    told = dict(pair.split("=", 1) for pair in environment.split())
    assert (told["RAY_AUTH_MODE"], told["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")
    assert not re.search(r"TOKEN=|PASSWORD|SECRET|ACCESS_KEY", " ".join([*of("ENV"), *of("ARG"), *of("RUN")]))
    for install in of("RUN"):
        assert "apt-get install" not in install or "rm -rf /var/lib/apt/lists/*" in install
