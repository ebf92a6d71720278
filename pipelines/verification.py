"""Whether everything in a run folder is what was committed: hashes, manifests, lineage, and what nobody lists."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Lock

from miner.artifacts.errors import DamagedArtifact, QuintainError
from miner.artifacts.lock import LOCK
from miner.artifacts.manifest import MANIFEST, FileRecord, Manifest
from miner.artifacts.pairs import PAIRS
from miner.artifacts.records import whole_copy
from miner.artifacts.sealed import unsealed
from miner.artifacts.store import LocalStore, Store
from pipelines.best import BEST
from pipelines.contents import Contents, Place, look, place_of
from pipelines.kept_verdicts import FOLDER as VERDICTS
from pipelines.kept_verdicts import same
from pipelines.plan import KEY_DIGITS
from pipelines.removed import RECORD, recorded
from pipelines.trackers import FOLDER

__all__ = ["Finding", "Meter", "Report", "verify"]

_CHUNK = 1 << 22
_AT_ONCE = 64 << 20  # an object up to this size is hashed in memory, a larger one through a local copy
_AGAIN = "run the same `pipelines run` again"
# What a run writes beside its artifacts, and what a comparison does.
_OWN = (
    "settings.json", "log.jsonl", "report.html", "verdicts.jsonl", LOCK,
    "results.csv", "results.md", "results.parquet", "results.png",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """`damage`: what is there cannot be relied on. Otherwise it is something no manifest knows, which harms nobody."""

    where: str
    what: str
    do: str
    damage: bool = True

    def __str__(self) -> str:
        return f"{'damaged' if self.damage else 'note'}: {self.where}: {self.what}; {self.do}."


@dataclass(frozen=True)
class Report:
    artifacts: int
    files: int
    bytes: int
    seconds: float
    findings: list[Finding]

    @property
    def damaged(self) -> bool:
        return any(finding.damage for finding in self.findings)


class Meter:
    """Bytes hashed so far, over all threads; tells `say` at most every `every` seconds."""

    def __init__(self, say: Callable[[int, int, float], None] | None = None, every: float = 0.5) -> None:
        self._say, self._every, self._lock = say, every, Lock()
        self.began = self._last = time.monotonic()
        self.total = self.done = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            now = time.monotonic()
            if self._say is not None and now - self._last >= self._every:
                self._last = now
                self._say(self.done, self.total, now - self.began)


def verify(
    store: Store,
    stages: Collection[str] = (),
    rounds: Collection[int] = (),
    threads: int = 1,
    meter: Meter | None = None,
) -> Report:
    """Hash all files of the artifacts of some stages (`mine`, `mine-i2t`, `pairs`) and rounds; of all, when none is
    given. Raises BadInput where no run is, OSError when the storage fails."""
    meter = meter or Meter()
    contents = look(store)

    def asked(name: str) -> bool:
        place = place_of(name)
        if place is None:
            return not rounds and (not stages or name.partition("/")[0] in stages)
        label = place.label in stages or place.label.partition("-")[0] in stages
        return (not stages or label) and (not rounds or place.round in rounds)

    findings = [f for f in (*_manifests(contents), *_own(store, contents), *_unlisted(contents)) if asked(f.where)]
    work = [
        (f"{prefix}/{name}", record)
        for prefix, manifest in contents.manifests.items()
        if asked(prefix)
        for name, record in manifest.files.items()
    ]
    work.sort(key=lambda each: -each[1].bytes)
    meter.total = sum(record.bytes for _, record in work)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda each: _file(store, contents, each[0], each[1], meter), work)
        findings += [finding for finding in found if finding is not None]
    findings.sort(key=lambda finding: (not finding.damage, finding.where))
    artifacts = sum(asked(prefix) for prefix in (*contents.manifests, *contents.broken))
    return Report(artifacts, len(work), meter.total, time.monotonic() - meter.began, findings)


def _manifests(contents: Contents) -> Iterator[Finding]:
    """Broken manifests, folders that are not named after what they hold, parents that are not there."""
    for prefix in contents.broken:
        beside = [name for name in contents.files if name.startswith(f"{prefix}/") and name != f"{prefix}/{MANIFEST}"]
        unknown = f"; {_few(sorted(beside))} beside it cannot be checked" if beside else ""
        yield Finding(prefix, f"{MANIFEST} is not what was committed{unknown}", f"delete this folder and {_AGAIN}")
    known = {manifest.fingerprint for manifest in contents.manifests.values()}
    whole: dict[str, Manifest] = {}
    for prefix, manifest in contents.manifests.items():
        place = place_of(prefix)
        if place is None or prefix != place.prefix:
            whole[prefix] = manifest
            continue
        key, held = place.key, manifest
        if key.startswith(RECORD):
            try:
                held = recorded(manifest) or manifest
            except DamagedArtifact:
                yield Finding(prefix, "this record of a removed artifact fits no artifact", f"delete it and {_AGAIN}")
                continue
            known.add(held.fingerprint)
            key = key.removeprefix(RECORD)
        whole[prefix] = held
        if key != held.input_key[:KEY_DIGITS]:
            yield Finding(
                prefix,
                f"this folder holds an artifact whose input key begins with {held.input_key[:KEY_DIGITS]}: it was "
                "renamed, and no run finds it",
                "give it its name back, or delete it",
            )
    if PAIRS not in contents.manifests and PAIRS not in contents.broken and any(place_of(p) for p in whole):
        yield Finding(PAIRS, "the training pairs of this run are missing", f"{_AGAIN} to write them anew")
    for prefix, manifest in whole.items():
        parents = manifest.inputs.get("parents")
        for role, fingerprint in parents.items() if isinstance(parents, dict) else ():
            if fingerprint not in known:
                yield Finding(
                    prefix,
                    f"it was made from {role} {str(fingerprint)[:12]}…, which is not here (deleted, or damaged)",
                    f"{_AGAIN}, which makes that again; `pipelines gc` removes what is of older settings",
                )


def _own(store: Store, contents: Contents) -> Iterator[Finding]:
    """The settings of the last run and the verdicts it mined by, which no manifest covers."""
    for name in contents.files:
        try:
            if name.startswith(f"{VERDICTS}/") and not same(name, store.read(name)):
                yield Finding(
                    name, "not the verdicts that were kept", f"{_AGAIN}, which copies them anew, or delete it"
                )
        except FileNotFoundError:
            continue
    name = _OWN[0]
    if name in contents.files:
        try:
            unsealed(json.loads(store.read(name)))
        except FileNotFoundError:
            return
        except ValueError:
            yield Finding(name, "not the settings that were written", f"{_AGAIN}, which writes it anew")


def _unlisted(contents: Contents) -> Iterator[Finding]:
    """One finding per folder: files that are no manifest's, none of which harms anybody."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in contents.unlisted():
        own = name in _OWN or name.startswith(("lease/", f"{VERDICTS}/", f"{FOLDER}/"))
        if not own and not any(name.startswith(f"{prefix}/") for prefix in contents.broken):
            scratch = PurePosixPath(name).name.startswith(".tmp-")
            place = place_of(name)
            groups.setdefault((place.prefix if place else name, scratch), []).append(name)
    for (where, scratch), names in groups.items():
        place = place_of(where)
        if scratch:
            yield Finding(where, f"{_few(names)}: left by a writer that was killed", _CLEAN, damage=False)
        elif where.startswith(f"{BEST}/"):
            yield Finding(where, "a copy of the best checkpoint that was killed", f"{_AGAIN}, which copies it", False)
        elif place is None:
            yield Finding(where, "no run wrote this, or its manifest is gone", "delete it if nobody needs it", False)
        elif where in contents.manifests:
            yield Finding(where, f"{_few(names)}: not listed by its manifest", _CLEAN, damage=False)
        elif _record(place) in contents.manifests:
            yield Finding(where, f"{_few(names)}: left by a gc that was killed", _CLEAN, damage=False)
        else:
            yield Finding(
                where,
                f"{_few(names)} and no manifest: a run is at it, or was killed there",
                "`pipelines run` goes on with what it can use, `pipelines gc` removes the rest",
                damage=False,
            )


_CLEAN = "`pipelines gc --delete` removes it"


def _record(place: Place) -> str:
    return f"{place.folder}/{RECORD}{place.key}"


def _few(names: list[str]) -> str:
    first = PurePosixPath(names[0]).name
    return first if len(names) == 1 else f"{len(names)} files ({first}, …)"


def _file(store: Store, contents: Contents, name: str, record: FileRecord, meter: Meter) -> Finding | None:
    """Compare one file with its manifest's line."""
    prefix = name.rpartition("/")[0]
    do = f"delete the folder {prefix} and {_AGAIN} to rebuild it"
    try:
        if isinstance(store, LocalStore):
            size = contents.files.get(name)
            same = size is None or size == record.bytes
            same = same and _digest(store.local(name), meter) == record.sha256
        elif record.bytes <= _AT_ONCE:
            data = store.read(name)
            size, same = len(data), hashlib.sha256(data).hexdigest() == record.sha256
            meter.add(record.bytes)
        else:
            size, same = None, whole_copy(store, name, record) is not None
            store.forget(name)
            meter.add(record.bytes)
    except FileNotFoundError:
        if not store.exists(f"{prefix}/{MANIFEST}"):
            return None  # deleted as a whole meanwhile
        return Finding(name, "missing, but its manifest lists it", do)
    except QuintainError:
        raise
    except OSError as error:
        return Finding(name, f"it cannot be read ({error.strerror})", f"look after the disk; then {do}")
    if same:
        return None
    if size is not None and size != record.bytes:
        return Finding(name, f"{size} bytes, where {record.bytes} were committed", do)
    return Finding(name, "its SHA-256 is not the one that was committed", do)


def _digest(path: object, meter: Meter) -> str:
    digest = hashlib.sha256()
    with open(str(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    return digest.hexdigest()
