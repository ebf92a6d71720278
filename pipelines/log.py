"""What happened in a run and how long it took, one JSON line per event: `log.jsonl` in its store.

A folder's log is appended to, each line by one write. An object store cannot append: there the object is written again,
whole, by the one driver that holds the lease.
"""

from __future__ import annotations

import json
from threading import Lock
from typing import Any

from miner.artifacts.store import LocalStore, Store

__all__ = ["LOG", "append", "lines"]

LOG = "log.jsonl"
_WRITING = Lock()


def append(store: Store, line: dict[str, Any]) -> None:
    """Add one line. Threads of one process may."""
    text = json.dumps(line, sort_keys=True) + "\n"
    if isinstance(store, LocalStore):
        with open(store.root / LOG, "a", encoding="utf-8") as log:
            log.write(text)
        return
    with _WRITING:
        store.write(LOG, _read(store) + text.encode())


def lines(store: Store) -> list[dict[str, Any]]:
    """Events in order; none where no log is."""
    found = []
    for line in _read(store).decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run may be half written
    return [line for line in found if isinstance(line, dict) and "prefix" in line]


def _read(store: Store) -> bytes:
    try:
        return store.read(LOG)
    except FileNotFoundError:
        return b""
