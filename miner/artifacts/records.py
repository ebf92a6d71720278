"""What is known of one file of an artifact, and whether a file still is that one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miner.artifacts.store import Store

__all__ = ["FileRecord", "digest_file", "healed_copy", "whole_copy"]

_CHUNK = 1 << 22


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: size in bytes, rows (0 where rows mean nothing), SHA-256."""

    bytes: int
    rows: int
    sha256: str


def whole_copy(store: Store, name: str, record: FileRecord) -> Path | None:
    """A local file with the content of `name`, hashed; None when it is damaged. Raises FileNotFoundError."""
    return healed_copy(
        store, name, lambda path: path.stat().st_size == record.bytes and digest_file(path) == record.sha256
    )


def healed_copy(store: Store, name: str, right: Callable[[Path], bool]) -> Path | None:
    """A local file with the content of `name` if it is `right`, else None. A bad copy of a good object is dropped, and
    fetched once more. Raises FileNotFoundError."""
    for _ in range(2):
        path = store.local(name)
        if right(path):
            return path
        if not store.forget(name):
            break
    return None
