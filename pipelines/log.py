"""What happened in a run and how long it took, one JSON line per event: `log.jsonl` in its store.

A folder's log is appended to, each line by one write. An object store cannot append: there the object is written again,
whole, by the one driver that holds the lease.
"""

from __future__ import annotations

import json
import os
from threading import Lock
from typing import Any

from miner.artifacts.sealed import CHECK, sealed, unsealed
from miner.artifacts.store import LocalStore, Store

__all__ = ["LOG", "append", "lines"]

LOG = "log.jsonl"
_WRITING = Lock()


def append(store: Store, line: dict[str, Any]) -> None:
    """Add one line. Threads of one process may."""
    text = json.dumps(sealed(line), sort_keys=True) + "\n"
    with _WRITING:
        if not isinstance(store, LocalStore):
            store.write(LOG, _read(store) + text.encode())
            return
        with open(store.root / LOG, "ab+") as log:
            log.seek(-min(log.tell(), 1), os.SEEK_END)
            # Half a line that a killed run, or a full disk, left must not take this one with it.
            log.write((b"\n" if log.read(1) not in (b"", b"\n") else b"") + text.encode())


def lines(store: Store) -> list[dict[str, Any]]:
    """Events in order, each as it was written; none where no log is."""
    found = []
    for line in _read(store).decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
            # Lines of older runs have no hash.
            found.append(unsealed(event) if isinstance(event, dict) and CHECK in event else event)
        except ValueError:
            continue  # damaged, or the last line of a killed run, half written
    return [line for line in found if isinstance(line, dict) and {"prefix", "event"} <= line.keys()]


def _read(store: Store) -> bytes:
    try:
        return store.read(LOG)
    except FileNotFoundError:
        return b""
