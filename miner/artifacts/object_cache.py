"""Local copies of objects, to memory-map, and local files on their way to the store.

They lie in `$QUINTAIN_CACHE`, else `$XDG_CACHE_HOME/quintain`, else `~/.cache/quintain`. A copy's file name holds a
hash of where it is from and one of its ETag and size, so that a replaced object is never taken for the old one. Copies
appear by rename. Beyond `$QUINTAIN_CACHE_GIB` (100) those that nobody asked for in the last hour go, oldest first.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from miner.artifacts.errors import BadInput

__all__ = ["LocalCopies"]

_SCRATCH = ".tmp-"
_IN_USE = 3600.0
_ABANDONED = 86400.0


@dataclass(frozen=True)
class LocalCopies:
    """The local copies of one store's objects. `limit` is in bytes, of all stores together."""

    root: Path
    url: str
    limit: int

    @classmethod
    def of(cls, url: str, root: Path | None) -> LocalCopies:
        """Where the environment says, unless `root` does. Raises BadInput for a size that is no number."""
        gib = os.environ.get("QUINTAIN_CACHE_GIB", "100")
        try:
            limit = int(float(gib) * 2**30)
        except (ValueError, OverflowError):
            raise BadInput(f"QUINTAIN_CACHE_GIB is {gib!r}; give a number of GiB, such as 100.") from None
        return cls(root or _default_root(), url, limit)

    def scratch(self, prefix: str, suffix: str) -> Path:
        """A fresh path to write a file to."""
        folder = self._scratch_folder(prefix)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / f"{_SCRATCH}{secrets.token_hex(8)}{suffix}"

    def sweep(self, prefix: str) -> None:
        """Delete what `scratch` left for `prefix`."""
        for left in self._scratch_folder(prefix).glob(f"{_SCRATCH}*"):
            left.unlink(missing_ok=True)

    def find(self, name: str, version: str, size: int) -> Path | None:
        """The copy of this version. One of another size is damaged, and dropped."""
        path = self._path(name, version)
        try:
            if path.stat().st_size == size:
                os.utime(path)
                return path
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return None

    def fresh(self) -> Path:
        """Where to download to before `adopt`."""
        folder = self.root / "objects"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / f"{_SCRATCH}{secrets.token_hex(8)}"

    def adopt(self, name: str, version: str, source: Path) -> Path:
        """Make a finished download the copy of this version."""
        path = self._path(name, version)
        os.replace(source, path)
        self._prune(keep=path)
        return path

    def drop(self, name: str) -> bool:
        """Delete every copy of `name`; whether there was one."""
        copies = list((self.root / "objects").glob(f"{self._place(name)}-*"))
        for copy in copies:
            copy.unlink(missing_ok=True)
        return bool(copies)

    def _place(self, name: str) -> str:
        return _digest(f"{self.url}\0{name}")[:32]

    def _path(self, name: str, version: str) -> Path:
        plain = PurePosixPath(name).name
        return self.root / "objects" / f"{self._place(name)}-{_digest(version)[:16]}-{plain}"

    def _scratch_folder(self, prefix: str) -> Path:
        return self.root / "scratch" / _digest(f"{self.url}\0{PurePosixPath(prefix)}")[:32]

    def _prune(self, keep: Path) -> None:
        now, total, idle = time.time(), 0, []
        for path in (self.root / "objects").iterdir():
            try:
                found = path.stat()
            except FileNotFoundError:  # another process prunes too
                continue
            total += found.st_size
            age = now - found.st_mtime
            if path != keep and age > (_ABANDONED if path.name.startswith(_SCRATCH) else _IN_USE):
                idle.append((found.st_mtime, found.st_size, path))
        for _, size, path in sorted(idle):
            if total <= self.limit and not path.name.startswith(_SCRATCH):
                continue
            path.unlink(missing_ok=True)
            total -= size


def _default_root() -> Path:
    if given := os.environ.get("QUINTAIN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintain"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
