"""Where artifacts live, behind one small interface: a folder here, a bucket in `object_store.py`.

Names are relative, `/`-separated and contained in the store. Two writes exist. `create` is the commit: it makes a
name appear whole and only if it was absent, so of several writers exactly one wins. `put` moves a finished file into
place and may replace what a killed writer left.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from miner.artifacts.errors import BadInput

__all__ = ["LocalStore", "Store"]


class Store(Protocol):
    """Named bytes. Every method raises OSError when the storage fails and BadInput for a name that leaves the store.

    What an object store raises is a BadInput or a Retryable as well, and says in a sentence what to do."""

    def __hash__(self) -> int: ...

    @property
    def url(self) -> str:
        """Where this is, as shown to people."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` durably if it is absent. False when it already exists; that content then stays."""
        ...

    def put(self, name: str, source: Path) -> None:
        """Move the local file `source` to `name`, durably and at once."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes of `name`. Raises FileNotFoundError."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, prefix: str) -> list[str]:
        """Names directly below `prefix` (files and folders), sorted; empty when there is none."""
        ...

    def local(self, name: str) -> Path:
        """A local file holding the content of `name`, to memory-map. Raises FileNotFoundError."""
        ...

    def forget(self, name: str) -> bool:
        """Drop what `local` keeps beside the storage, because it is damaged. False when nothing is kept."""
        ...

    def scratch(self, prefix: str, suffix: str = "") -> Path:
        """A fresh local path from which `put` below `prefix` is cheap."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """`put` from memory."""
        ...

    def remove(self, name: str) -> None:
        """Delete `name` and everything below it; nothing happens when it is absent. Raises OSError when it stays."""
        ...

    def sweep(self, prefix: str) -> None:
        """Delete what killed writers left of `scratch` below `prefix`; only while nobody else writes there."""
        ...


_SCRATCH = ".tmp-"


@dataclass(frozen=True)
class LocalStore:
    """A folder on a disk. Files appear by link or rename after fsync, and the folder is synced after them."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise BadInput(f"artifact name {name!r} leaves {self.root}; names are relative and stay inside.")
        return self.root.joinpath(*parts)

    def create(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        source = self.scratch(str(PurePosixPath(name).parent))
        try:
            with open(source, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(source, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
            return True
        finally:
            source.unlink(missing_ok=True)

    def put(self, name: str, source: Path) -> None:
        target = self._path(name)
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(source, target)
        _sync_folder(target.parent)

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def exists(self, name: str) -> bool:
        return self._path(name).exists()

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))

    def local(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(2, "No such file", str(path))
        return path

    def forget(self, name: str) -> bool:
        return False

    def scratch(self, prefix: str, suffix: str = "") -> Path:
        folder = self._path(prefix)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{_SCRATCH}{secrets.token_hex(8)}{suffix}"

    def write(self, name: str, data: bytes) -> None:
        source = self.scratch(str(PurePosixPath(name).parent))
        try:
            source.write_bytes(data)
            self.put(name, source)
        finally:
            source.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        path = self._path(name)
        if path.is_dir():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, prefix: str) -> None:
        for left in self._path(prefix).glob(f"{_SCRATCH}*"):
            left.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    """All of it but what NFS keeps of files that are open (`.nfs...`) until they are closed. Raises OSError."""

    def unless_gone(_: object, __: str, error: BaseException) -> None:
        if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=unless_gone)
    else:
        shutil.rmtree(folder, onerror=lambda function, path, info: unless_gone(function, path, info[1]))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
