from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings, write_toml, write_vectors


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"))


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings.parse(raw_settings(folder), "test")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with `run.toml` and the finished run `run`; tests change copies of it."""
    base = tmp_path_factory.mktemp("finished")
    run_file = write_toml(base / "run.toml", raw_settings(folder))
    _done(CliRunner().invoke(main, ["run", str(run_file), "--run-dir", str(base / "run")]))
    return base


@pytest.fixture(scope="session")
def run_twice(tmp_path_factory: pytest.TempPathFactory, folder: Path, finished_run: Path) -> Path:
    """The same after a second run with another loss, in the same run folder: most stages have an older key too."""
    base = tmp_path_factory.mktemp("twice")
    shutil.copytree(finished_run / "run", base / "run")
    run_file = write_toml(base / "run.toml", raw_settings(folder, loss={"alpha": 0.4}))
    _done(CliRunner().invoke(main, ["run", str(run_file), "--run-dir", str(base / "run")]))
    return base


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(base: Path) -> Path:
        """The run folder of a base, copied."""
        return Path(shutil.copytree(base / "run", tmp_path / "copy"))

    return copy


def _done(result: object) -> None:
    assert getattr(result, "exit_code", None) == 0, getattr(result, "output", result)
