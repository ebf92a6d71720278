"""The run's own copies of the verdicts it mines by: `verdicts/<SHA-256>.<suffix>`, compared with their names when read.

No manifest lists them, for the settings, and so the keys of what is mined, hold the hash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.records import healed_copy
from miner.artifacts.store import Store

if TYPE_CHECKING:
    from pipelines.settings import Settings

__all__ = ["FOLDER", "keep_verdicts", "kept_copy", "same"]

FOLDER = "verdicts"


def same(name: str, data: bytes) -> bool:
    """Whether this is what was kept under `name`."""
    return hashlib.sha256(data).hexdigest() == PurePosixPath(name).stem


def keep_verdicts(settings: Settings, store: Store) -> None:
    """Copy the verdicts that the settings name into the run, for workers anywhere, unless they are there, whole. Raises
    BadInput if they changed."""
    name = settings.mine.kept_verdicts
    if not name:
        return
    try:
        if same(name, store.read(name)):
            return
    except FileNotFoundError:
        pass
    try:
        found = Path(settings.mine.verdicts).read_bytes()
    except OSError as gone:
        raise BadInput(f"{settings.mine.verdicts}: cannot be read ({gone.strerror}); run again.") from gone
    if not same(name, found):
        raise BadInput(f"{settings.mine.verdicts}: changed since it was read a moment ago; run again.")
    store.write(name, found)


def kept_copy(store: Store, name: str) -> Path:
    """A local file with the verdicts kept under `name`. Raises DamagedArtifact for others, or none."""
    what = "not the verdicts that were kept"
    try:
        path = healed_copy(store, name, lambda path: same(name, path.read_bytes()))
    except FileNotFoundError:
        path, what = None, "missing"
    if path is None:
        again = "the same `pipelines run` copies them anew"
        raise DamagedArtifact(f"{store.url}/{name}: {what}; {again}.")
    return path
