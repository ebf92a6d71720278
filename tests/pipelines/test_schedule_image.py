"""The recipe of the image, as far as it can be checked without building it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "locks"
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
    assert {"pyproject.toml", "locks", "miner", "trainer", "pipelines"} <= set(copied)
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


def test_nothing_is_installed_without_a_hash() -> None:
    (install,) = [rest for rest in of("RUN") if "pip install" in rest]
    first, own = (command.split() for command in install.replace("\\\n", " ").split("&&"))
    assert {"--require-hashes", "--no-cache-dir", '"locks/${FAISS}.txt"'} <= set(first)
    assert {"--no-deps", "--no-build-isolation", "--no-cache-dir", "."} <= set(own)
    assert "FAISS=cpu" in of("ARG")
    assert {path.name for path in LOCKS.iterdir()} == {"cpu.txt", "gpu.txt"}


def locked(faiss: str) -> dict[str, tuple[str, str]]:
    """Version and everything else that a lock says of a package, by its name."""
    entries = re.split(r"\n(?=\S)", (LOCKS / f"{faiss}.txt").read_text().strip())
    matches = [re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+]+)(.*)", entry, re.DOTALL) for entry in entries]
    return {canonicalize_name(match[1]): (match[2], match[3]) for match in matches if match is not None}


@pytest.mark.parametrize("faiss", ["cpu", "gpu"])
def test_a_lock_has_hashes_the_tested_versions_and_all_that_the_image_needs(faiss: str) -> None:
    found = locked(faiss)
    assert len(found) > 100
    for name, (_, rest) in found.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), name
    tested = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    versions = {canonicalize_name(name): version for name, version in tested.items()}
    assert {name: versions.get(name, version) for name, (version, _) in found.items()} == {
        name: version for name, (version, _) in found.items()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], "quintain[cluster,cloud,pretrained,build]", *extras[faiss]]
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name == "quintain":
            wanted += [each for extra in requirement.extras for each in extras[extra]]
        else:
            version, _ = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (requirement, version)
    assert ({"faiss-cpu", "faiss-gpu"} & set(found)) == {f"faiss-{faiss}"}
    # KubeRay submits over the dashboard, which only Ray with its default extra has.
    assert any("default" in each for each in extras["cluster"])


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
