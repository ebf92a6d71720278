"""The record of an artifact that `pipelines gc` removed although later ones were made from it.

Its children keep its fingerprint, and with the record the plan still knows that they are what these settings give. So
they stay done, and the artifact is made again only when something that is still to do needs it. A record is an
artifact without files, `removed-<key>` beside where the other was; it holds all of the other's manifest.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Draft, FileRecord, Manifest
from miner.artifacts.store import Store

__all__ = ["RECORD", "record_at", "recorded", "write_record"]

RECORD = "removed-"
_KIND = "removed"


def record_at(prefix: str) -> str:
    """Where the record of the artifact at `prefix` is."""
    folder, _, key = prefix.rpartition("/")
    return f"{folder}/{RECORD}{key}"


def write_record(store: Store, prefix: str, manifest: Manifest) -> None:
    """Commit the record. One of an earlier artifact with the same inputs and other bytes is replaced."""
    draft = Draft(store, record_at(prefix), _KIND, {"fingerprint": manifest.fingerprint, "manifest": _body(manifest)})
    try:
        same = draft.committed() is not None
    except ValueError as other:
        if isinstance(other, OSError):  # the store refused
            raise
        store.remove(draft.prefix)
        same = False
    if not same:
        draft.commit({}, {})


def recorded(record: Manifest | None) -> Manifest | None:
    """The manifest that a record holds; None for what is no record. Raises DamagedArtifact when they do not fit."""
    if record is None or record.kind != _KIND:
        return None
    try:
        raw = record.inputs["manifest"]
        files = {name: FileRecord(**about) for name, about in raw["files"].items()}
        manifest = Manifest(raw["kind"], raw["inputs"], files, raw["meta"])
        fits = manifest.fingerprint == record.inputs["fingerprint"]
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise DamagedArtifact("the record of a removed artifact is not what gc wrote; delete its folder and run again.")
    return manifest


def _body(manifest: Manifest) -> dict[str, Any]:
    files = {name: asdict(record) for name, record in manifest.files.items()}
    return {"kind": manifest.kind, "inputs": manifest.inputs, "files": files, "meta": manifest.meta}
