"""Where a run lives, a folder or an object store, and who may write there now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from miner.artifacts.errors import BadInput
from miner.artifacts.lease import hold_lease
from miner.artifacts.locations import open_store
from miner.artifacts.lock import hold
from miner.artifacts.object_store import ObjectStore
from miner.artifacts.probe import proven_once
from miner.artifacts.store import LocalStore, Store

__all__ = ["guarded", "only_writer", "place", "whole"]


def whole(location: str) -> str:
    """The same place, said so that it means that in any folder. Raises BadInput for the empty one, which a variable
    that is not set leaves of `--run-dir "$RUN"`: it would be whatever folder one is in."""
    if not location:
        raise BadInput("'' is no folder; give a path, s3://bucket/prefix or gs://bucket/prefix.")
    return location if "://" in location else str(Path(location).resolve())


def place(location: str) -> Store:
    """The store of a run at a path, `file://`, `s3://` or `gs://`. Raises BadInput for what is none of these."""
    # Workers have other current folders, so nothing they are told may be relative.
    return open_store(whole(location))


@contextmanager
def only_writer(store: Store) -> Iterator[Callable[[], None]]:
    """Be the only run that writes into `store`. Gives what raises AnotherWriter once another run has taken over.

    Raises AnotherWriter when somebody writes there, and BadInput for an object store that cannot tell two writers
    apart: a lease and every commit rest on that.
    """
    if isinstance(store, LocalStore):
        with hold(store.root, shared=True):
            yield lambda: None
        return
    proven_once(store)
    with hold_lease(store) as lease:
        yield lease.check


def guarded(store: Store, check: Callable[[], None]) -> Store:
    """The same store, into which this process writes only while `check` passes. A folder needs none: its lock is held
    by whoever is stopped, too. Workers of Ray get the store without it: what they had begun they may still commit."""
    return replace(store, guard=check) if isinstance(store, ObjectStore) else store
