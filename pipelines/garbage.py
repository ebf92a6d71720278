"""What of a run folder nobody needs any more, and its deletion, which a kill at any moment cannot harm.

Kept is: every artifact of the plan that is done; everything in the folder of a stage that is still to do (where
another version of a library makes all stale, nothing goes); and what these were made from, by fingerprint, to the very
first. Only embeddings and indexes of rounds that are no longer kept go although later artifacts were made from them;
a record (`removed.py`) takes their place, so that a finished run stays finished.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from miner.artifacts.errors import AnotherWriter, DamagedArtifact
from miner.artifacts.manifest import MANIFEST, Manifest
from miner.artifacts.store import LocalStore, Store
from pipelines.best import BEST
from pipelines.contents import Contents, place_of
from pipelines.plan import Step
from pipelines.removed import record_at, recorded, write_record

__all__ = ["Item", "collect", "delete", "refuse_while_running"]

_SCRATCH = (".tmp-", ".quintain-probe-")
_BULKY = {"encode": "embeddings", "index": "an index"}


@dataclass(frozen=True)
class Item:
    """Something that can go: an artifact's folder, or files at `where`. `bytes` is None where that is not known."""

    where: str
    names: tuple[str, ...]
    bytes: int | None
    why: str
    manifest: Manifest | None = None
    leave_record: bool = False


def collect(
    contents: Contents, steps: Sequence[Step], keep_rounds: int | None = None, keep_embeddings: bool = False
) -> list[Item]:
    """What can go, in an order in which any beginning of it can go alone: leftovers, then children before parents.

    `keep_rounds`: of how many of the newest rounds embeddings and indexes stay; of all when it is None. Raises
    DamagedArtifact where a manifest is broken.
    """
    for prefix in contents.broken:
        raise DamagedArtifact(f"{prefix}: its manifest is damaged; `pipelines verify` says what to do, then gc again.")
    ours = {prefix: m for prefix, m in contents.manifests.items() if (p := place_of(prefix)) and p.prefix == prefix}
    records = {prefix: held for prefix, manifest in ours.items() if (held := recorded(manifest)) is not None}
    whole = {**ours, **records}
    copied = [contents.manifests[BEST]] if BEST in contents.manifests else []
    kept = _kept(whole, records, steps, copied)
    by_folder = {step.stage.folder: step for step in steps}
    items = list(_leftovers(contents, by_folder, set(ours)))
    for prefix in _children_first({prefix: m for prefix, m in whole.items() if prefix not in kept}):
        what = "the record of a removed artifact that nothing needs" if prefix in records else _why(prefix, by_folder)
        items.append(_artifact(contents, prefix, what, ours[prefix]))
    for step in _bulky(steps, keep_rounds, keep_embeddings):
        why = f"{_BULKY[step.stage.work]} of round {step.stage.round}, which no stage that is to run needs"
        items.append(_artifact(contents, step.prefix, why, ours[step.prefix], leave_record=True))
    return items


def _kept(
    whole: dict[str, Manifest], records: Collection[str], steps: Sequence[Step], copied: Sequence[Manifest]
) -> set[str]:
    """Folders of artifacts and records that stay: what the plan uses or may still use, what the copy of the best
    checkpoint was made from, and their ancestors."""
    finished = all(step.state == "done" for step in steps)
    by_folder = {step.stage.folder: step for step in steps}
    roots = {record_at(step.prefix) if step.removed else step.prefix for step in steps if step.state == "done"}
    for prefix in whole:
        place = place_of(prefix)
        assert place is not None
        step = by_folder.get(place.folder)
        if not finished if step is None else step.state != "done":
            roots.add(prefix)
    by_fingerprint: dict[str, list[str]] = {}
    for prefix, manifest in whole.items():
        by_fingerprint.setdefault(manifest.fingerprint, []).append(prefix)
    kept: set[str] = set()
    todo = [prefix for prefix in roots if prefix in whole]
    todo += [
        prefix for each in copied for fingerprint in _parents(each) for prefix in by_fingerprint.get(fingerprint, [])
    ]
    while todo:
        prefix = todo.pop()
        if prefix not in kept:
            kept.add(prefix)
            for fingerprint in _parents(whole[prefix]):
                todo += by_fingerprint.get(fingerprint, [])
    # A record whose artifact was made again, to the same bytes.
    again = {r for r in records if any(whole[a].fingerprint == whole[r].fingerprint for a in kept - set(records))}
    return kept - again


def _parents(manifest: Manifest) -> list[str]:
    parents = manifest.inputs.get("parents")
    return list(parents.values()) if isinstance(parents, dict) else []


def _why(prefix: str, by_folder: dict[str, Step]) -> str:
    place = place_of(prefix)
    assert place is not None
    if place.folder in by_folder:
        return "made from older inputs, and made again since"
    return "of a stage that the run has no more"


def _children_first(doomed: dict[str, Manifest]) -> list[str]:
    """So that at no moment an artifact is there whose parent went first."""
    by_fingerprint = {manifest.fingerprint: manifest for manifest in doomed.values()}

    @cache
    def depth(fingerprint: str) -> int:
        parents = [each for each in _parents(by_fingerprint[fingerprint]) if each in by_fingerprint]
        return 1 + max((depth(each) for each in parents), default=0)

    for prefix in sorted(doomed):  # round by round, so that nothing recurses through all rounds
        depth(doomed[prefix].fingerprint)
    return sorted(doomed, key=lambda prefix: (-depth(doomed[prefix].fingerprint), prefix))


def _bulky(steps: Sequence[Step], keep_rounds: int | None, keep_embeddings: bool) -> list[Step]:
    if keep_rounds is None:
        return []
    newest = max((step.stage.round for step in steps if step.state == "done"), default=0)
    needed = {name for step in steps if step.state != "done" for _, name in step.stage.parents}
    works = {"index"} if keep_embeddings else set(_BULKY)
    return [
        step
        for step in steps
        if step.stage.work in works
        and step.state == "done"
        and not step.removed
        and step.stage.round <= newest - keep_rounds
        and step.stage.name not in needed
    ]


def _leftovers(contents: Contents, by_folder: dict[str, Step], committed: set[str]) -> Iterator[Item]:
    """Files that no manifest lists and that a run wrote; what somebody else put there stays."""
    finished = all(step.state == "done" for step in by_folder.values())
    groups: dict[tuple[str, str], list[str]] = {}
    for name in contents.unlisted_beside(committed):
        place = place_of(name)
        if PurePosixPath(name).name.startswith(_SCRATCH) or name.startswith("quintain-doctor-"):
            why = "left by a writer that was killed"
        elif place is None:
            continue
        elif place.prefix in committed:
            why = "parts of a stage that is finished"
        elif place.folder in by_folder:
            if by_folder[place.folder].state != "done":
                continue  # a run goes on from these parts
            why = "left by a gc that was killed, or parts of a stage that is finished"
        elif finished:
            why = "parts of a stage that the run has no more"
        else:
            continue
        groups.setdefault((place.prefix if place else name, why), []).append(name)
    for (where, why), names in groups.items():
        yield Item(where, tuple(names), _sum(contents, names), why)


def _artifact(contents: Contents, prefix: str, why: str, manifest: Manifest, leave_record: bool = False) -> Item:
    names = [name for name in contents.below(prefix) if name == f"{prefix}/{MANIFEST}" or name in _of(prefix, manifest)]
    return Item(prefix, tuple(names), _sum(contents, names), why, manifest, leave_record)


def _of(prefix: str, manifest: Manifest) -> set[str]:
    return {f"{prefix}/{name}" for name in manifest.files}


def _sum(contents: Contents, names: Sequence[str]) -> int | None:
    sizes = [contents.files[name] for name in names]
    return None if None in sizes else sum(size or 0 for size in sizes)


def delete(store: Store, items: Sequence[Item], check: Callable[[], None], told: Callable[[Item], None]) -> None:
    """The manifest goes first: from then on nobody takes what is left for an artifact."""
    for item in items:
        check()
        if item.manifest is None:
            for name in item.names:
                store.remove(name)
        else:
            if item.leave_record:
                write_record(store, item.where, item.manifest)
            store.remove(f"{item.where}/{MANIFEST}")
            store.remove(item.where)
        told(item)


def refuse_while_running(store: Store) -> None:
    """For a look that takes no lease. Raises AnotherWriter."""
    if isinstance(store, LocalStore):
        from miner.artifacts.lock import LOCK, hold

        with hold(store.root, shared=os.access(store.root / LOCK, os.W_OK)):
            return
    epochs = [int(name) for name in store.names("lease") if name.isascii() and name.isdigit()]
    if not epochs:
        return
    try:
        said = store.read(f"lease/{max(epochs)}")
    except FileNotFoundError:
        return
    try:
        term = json.loads(said)
        held = not term["released"] and float(term["until"]) > time.time()
        holder = str(term["holder"])
    except (ValueError, KeyError, TypeError):
        return
    if held:
        raise AnotherWriter(f"{store.url}: another run writes here: {holder}; wait for it to end.")
