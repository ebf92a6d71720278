"""One writer per folder: an advisory lock that the kernel drops when its holder dies, however it dies.

Locks of a folder itself do not leave their host; those of a file do, by NFS and by cluster file systems that are
mounted so. A run's folder, which several hosts may share, therefore has such a file, `LOCK`, which is never removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from miner.artifacts.errors import AnotherWriter, BadInput

__all__ = ["LOCK", "WITHOUT_LOCKS", "hold"]

LOCK = ".lock"
# Where a file system knows no locks, such as Lustre mounted without them, this host's alone are left.
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def hold(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Be the only command that writes into `folder`, which is made if need be; of all hosts where it is `shared`.

    Raises AnotherWriter when one is, and BadInput for a file.
    """
    if folder.is_file():
        raise BadInput(f"{folder}: this is a file; give a folder, which is made if it is not there.")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _lock(folder, os.O_RDONLY, folder, stack)
        if shared:
            try:
                _lock(folder / LOCK, os.O_RDWR | os.O_CREAT, folder, stack)
            except OSError as failed:
                if failed.errno not in WITHOUT_LOCKS:
                    raise
        yield


def _lock(path: Path, flags: int, folder: Path, stack: ExitStack) -> None:
    lock = os.open(path, flags | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        raise AnotherWriter(
            f"{folder}: another command is writing in this folder; wait for it to end, or use another folder."
        ) from held
