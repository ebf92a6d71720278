"""One writer per folder: an advisory lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.artifacts.errors import AnotherWriter, BadInput

__all__ = ["hold"]


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only command that writes into `folder`, which is made if need be.

    Raises AnotherWriter when one is, and BadInput for a file.
    """
    if folder.is_file():
        raise BadInput(f"{folder}: this is a file; give a folder, which is made if it is not there.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise AnotherWriter(
                f"{folder}: another command is writing in this folder; wait for it to end, or use another folder."
            ) from held
        yield
    finally:
        os.close(lock)
