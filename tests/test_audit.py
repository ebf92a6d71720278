"""What is made of pip-audit's reports; the database itself is not at hand everywhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parents[1] / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "ours", "skip_reason": "not found"}
WRONG = {
    "name": "ray",
    "version": "2.1",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.2", "3.0"]}],
}


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


def test_a_known_vulnerability_fails_and_is_named(audit: ModuleType) -> None:
    code, lines = audit.verdict({"cpu.txt": report(CLEAN, UNKNOWN, WRONG)}, {})
    assert code == 1
    assert lines[0] == "audit: 2 packages looked up, 1 unknown to the database"
    assert lines[1:] == ["cpu.txt: ray 2.1: PYSEC-1, mended in 2.2, 3.0"]


def test_what_was_accepted_passes_by_any_of_its_names(audit: ModuleType) -> None:
    assert audit.verdict({"cpu.txt": report(WRONG)}, {"CVE-1": "only in a part that is not used"})[0] == 0
    assert audit.verdict({"cpu.txt": report(WRONG)}, {"CVE-2": "another"})[0] == 1


@pytest.mark.parametrize("found", [None, report(UNKNOWN), report()])
def test_without_a_database_it_says_so(audit: ModuleType, found: dict[str, Any] | None) -> None:
    code, (line,) = audit.verdict({"cpu.txt": found}, {})
    assert code == 0
    assert "nothing was looked up" in line


def test_one_lock_without_an_answer_hides_nothing_in_the_other(audit: ModuleType) -> None:
    assert audit.verdict({"cpu.txt": None, "gpu.txt": report(WRONG)}, {})[0] == 1
