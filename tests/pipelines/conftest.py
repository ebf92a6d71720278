from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.settings import Settings
from tests.pipelines.builders import raw_settings, write_vectors


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"))


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings.parse(raw_settings(folder), "test")
