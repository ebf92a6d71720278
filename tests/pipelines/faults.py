"""What a disk refuses: an error in place of one call of the system, or a limit on the size of files.

The calls are those by which Python changes a folder or reads from it. A limit is the kernel's own: a write beyond it is
cut short, and the next one fails.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ERRORS", "Fault", "arm"]

# What each call can answer. A handle has no name, so that only what concerns the whole disk is likely there.
ERRORS = {
    "open": ("EIO", "EACCES", "ENOSPC"),
    "mkdir": ("EACCES", "ENOSPC", "EIO"),
    "link": ("EIO", "EACCES", "ENOSPC"),
    "replace": ("EIO", "EACCES", "ENOSPC"),
    "unlink": ("EIO", "EACCES"),
    "fsync": ("EIO", "ENOSPC"),
    "write": ("ENOSPC", "EIO"),
}


@dataclass(frozen=True)
class Fault:
    """The `at`-th call below `root` fails with `error`; none does with 0. `limit`: bytes that a file may have."""

    root: str
    at: int = 0
    error: str = "EIO"
    limit: int | None = None


def arm(fault: Fault) -> list[str]:
    """From now on in this process. Gives the list that calls are added to."""
    calls: list[str] = []

    def met(name: str, path: object) -> None:
        calls.append(name)
        if len(calls) == fault.at:
            code = getattr(errno, fault.error)
            raise OSError(code, os.strerror(code), *([] if path is None else [str(path)]))

    def inside(path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and str(Path(path)).startswith(fault.root)

    def of_paths(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(path: Any, *more: Any, **named: Any) -> Any:
            if inside(path):
                met(name, path)
            return real(path, *more, **named)

        return call

    for name in ("mkdir", "link", "replace", "unlink"):
        setattr(os, name, of_paths(name))
    sync, opened = os.fsync, io.open

    def fsync(handle: int) -> None:
        met("fsync", None)
        sync(handle)

    def open_(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if not inside(path):
            return opened(path, mode, *more, **named)
        met("open", path)
        file = opened(path, mode, *more, **named)
        return _Failing(file, lambda: met("write", None)) if set(mode) & set("wax+") else file

    os.fsync = fsync
    builtins.open = io.open = open_  # type: ignore[assignment]  # the same for every mode
    if fault.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, resource.RLIM_INFINITY))
    return calls


class _Failing:
    """A file whose writes are calls too: half of what was to be written arrives before one fails."""

    def __init__(self, file: Any, met: Callable[[], None]) -> None:
        self._file, self._met = file, met

    def write(self, data: Any) -> int:
        try:
            self._met()
        except OSError:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise
        return int(self._file.write(data))

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *about: object) -> None:
        self._file.__exit__(*about)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
