"""Whether a store keeps the promise that commits rest on: of several writers of an absent name, one wins.

Some servers that speak S3 ignore the condition of a conditional PUT and overwrite, and some file systems have no hard
links. On such, two runs could commit two artifacts under one name, each sure that its own counts.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import secrets

from miner.artifacts.errors import BadInput
from miner.artifacts.store import LocalStore, Store

__all__ = ["check_conditional_create", "proven_once"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def check_conditional_create(store: Store) -> str:
    """Create one name twice, with different contents, and say what was found. Leaves nothing behind.

    Raises BadInput when the second one was not turned away, or replaced the first; OSError when the storage fails. Two
    writers at the very same moment are not tried: that a server is atomic cannot be shown from outside.
    """
    name = f".quintain-probe-{secrets.token_hex(16)}"
    first, second = b"first " + name.encode(), b"second " + name.encode()
    try:
        won = store.create(name, first)
        won_again = store.create(name, second)
        found = store.read(name)
    except OSError as error:
        if isinstance(store, LocalStore) and error.errno in _NO_LINKS:
            raise BadInput(
                f"{store.url}: this file system has no hard links ({error.strerror}), so two writers could not be told "
                "apart; use a folder on another one."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            store.remove(name)
    # A create that was repeated after a lost answer says False of its own writing.
    if won_again or found != first or not (won or found == first):
        raise BadInput(
            f"{store.url}: this store ignores the condition of a create (the second of two writers "
            f"{'won as well' if won_again else 'was turned away, but its content stayed'}), so two runs could "
            "overwrite each other's artifacts; use a store with conditional writes (If-None-Match), or a local disk."
        )
    how = "a hard link, after fsync" if isinstance(store, LocalStore) else "a conditional write"
    return f"{store.url}: of two writers of one name the second was turned away ({how})."


@functools.lru_cache(maxsize=256)
def proven_once(store: Store) -> None:
    """Check an object store once per process. Raises as `check_conditional_create` does; a folder is not checked: a
    link is atomic on every file system that has it, and a commit says so where one has not."""
    if not isinstance(store, LocalStore):
        check_conditional_create(store)
