"""The same program with one check taken out, to see that the tests which are there for it notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["MUTANTS"]


def _read() -> None:
    from miner.artifacts.manifest import Artifact

    def read(self: Artifact, name: str) -> bytes:
        return self.store.read(f"{self.prefix}/{name}")

    Artifact.read = read  # type: ignore[method-assign]  # replacing it is the point, here and below


def _path() -> None:
    from miner.artifacts import manifest

    manifest.whole_copy = lambda store, name, record: store.local(name)  # type: ignore[attr-defined]


def _manifest() -> None:
    from miner.artifacts.manifest import Manifest
    from miner.artifacts.records import FileRecord

    def loads(cls: type[Manifest], data: bytes, where: str) -> Manifest:
        raw: dict[str, Any] = json.loads(data)
        files = {name: FileRecord(**record) for name, record in raw["files"].items()}
        return cls(raw["kind"], raw["inputs"], files, raw["meta"])

    Manifest.loads = classmethod(loads)  # type: ignore[assignment, method-assign]


# By name, what takes the check out of a process.
MUTANTS: dict[str, Callable[[], None]] = {
    "a file that is read is not hashed": _read,
    "a file that is mapped is not hashed": _path,
    "a manifest is taken at its word": _manifest,
}
