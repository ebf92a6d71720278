"""One of several processes that want the same names, the same artifact and the same place at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from miner.artifacts.errors import AnotherWriter
from miner.artifacts.lease import hold_lease
from miner.artifacts.locations import open_store
from miner.artifacts.lock import hold
from miner.artifacts.manifest import Draft

__all__ = ["Found", "write"]

_DEADLINE = 600
# What a writer found in one race: whether it won the name, who won the artifact, whether it was let in.
Found = tuple[bool, int, bool]


def write(number: int, locations: Sequence[str], races: int, start: Any, held: Any, found: Any) -> None:
    """All races at all places, each begun by all writers at once; (number, what it found there) into the queue."""
    seen: dict[str, list[Found]] = {}
    for location in locations:
        store, seen[location] = open_store(location), []
        for race in range(races):
            only: AbstractContextManager[object] = hold_lease(store, prefix=f"{race}/lease")
            if "://" not in location:
                only = hold(Path(location) / str(race))
            start.wait(_DEADLINE)
            won = store.create(f"{race}/name", f"writer {number}".encode())
            made = Draft(store, f"{race}/artifact", "index", {"race": race}).commit({}, {"writer": number})
            with ExitStack() as stack:
                try:
                    stack.enter_context(only)
                    let_in = True
                except AnotherWriter:
                    let_in = False
                seen[location].append((won, made.manifest.meta["writer"], let_in))
                held.wait(_DEADLINE)
    found.put((number, seen))
