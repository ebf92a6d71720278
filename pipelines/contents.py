"""What lies in a run folder: every manifest, and every file, listed by one or not. Reads, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import MANIFEST, Manifest
from miner.artifacts.store import LocalStore, Store

__all__ = ["Contents", "Place", "look", "place_of"]

_DEPTH = 8  # folders inside folders: more is nothing of ours
_LISTERS = 16


@dataclass(frozen=True)
class Place:
    """Which stage of which round a name belongs to: rounds/<round>/<label>/<key>."""

    round: int
    label: str
    key: str

    @property
    def folder(self) -> str:
        return f"rounds/{self.round:03d}/{self.label}"

    @property
    def prefix(self) -> str:
        return f"{self.folder}/{self.key}"


def place_of(name: str) -> Place | None:
    """None for what is below no stage's folder."""
    parts = name.split("/")
    if len(parts) < 4 or parts[0] != "rounds" or not (parts[1].isascii() and parts[1].isdigit()):
        return None
    found = Place(int(parts[1]), parts[2], parts[3])
    return found if f"{name}/".startswith(f"{found.prefix}/") else None


@dataclass
class Contents:
    """`files`: every file with its bytes, None where the store does not tell; `manifests` and `broken` by folder."""

    files: dict[str, int | None] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def listed(self) -> set[str]:
        """Names of all files that a manifest lists."""
        return {f"{prefix}/{name}" for prefix, manifest in self.manifests.items() for name in manifest.files}

    def unlisted(self) -> list[str]:
        """Files that no manifest lists, the manifests themselves apart."""
        manifests = {f"{prefix}/{MANIFEST}" for prefix in (*self.manifests, *self.broken)}
        return sorted(set(self.files) - self.listed() - manifests)

    def unlisted_beside(self, committed: Iterable[str]) -> list[str]:
        """Files that are of none of some artifacts; one inside another's folder, as rules leave them, is not theirs."""
        own = {f"{p}/{name}" for p in committed for name in (MANIFEST, *self.manifests[p].files)}
        above = {
            f"{p}/{name}" for p, m in self.manifests.items() if place_of(p) is None for name in (MANIFEST, *m.files)
        }
        return sorted(set(self.files) - own - above)

    def below(self, prefix: str) -> list[str]:
        """Files below a folder."""
        return sorted(name for name in self.files if name.startswith(f"{prefix}/"))


def look(store: Store) -> Contents:
    """Raises BadInput when there is nothing, OSError when the storage fails."""
    contents = Contents()
    with ThreadPoolExecutor(_LISTERS) as pool:
        folders = [""]
        for _ in range(_DEPTH):
            seen = list(pool.map(lambda folder: _seen(store, folder), folders))
            folders = []
            for found in seen:
                contents.files |= found.files
                folders += found.folders
                if found.manifest is not None:
                    contents.manifests[found.name] = found.manifest
                if found.broken:
                    contents.broken[found.name] = found.broken
    if not contents.files:
        raise BadInput(f"{store.url}: nothing is here; give the folder that `pipelines run` wrote to.")
    return contents


@dataclass
class _Seen:
    """One folder: files directly in it, folders in it, its manifest."""

    name: str
    files: dict[str, int | None]
    folders: list[str]
    manifest: Manifest | None = None
    broken: str = ""


def _seen(store: Store, folder: str) -> _Seen:
    seen = _in_folder(store, folder) if isinstance(store, LocalStore) else _in_bucket(store, folder)
    own = str(PurePosixPath(folder, MANIFEST))
    if own not in seen.files:
        return seen
    try:
        data = store.read(own)
        seen.files[own] = len(data)
        seen.manifest = Manifest.loads(data, f"{store.url}/{folder}")
    except FileNotFoundError:  # deleted since it was listed
        del seen.files[own]
    except DamagedArtifact as damage:
        seen.broken = str(damage)
    if seen.manifest is not None and not isinstance(store, LocalStore):
        # What a manifest lists needs no look of its own.
        for name, record in seen.manifest.files.items():
            whole = f"{folder}/{name}"
            if whole in seen.folders:
                seen.folders.remove(whole)
                seen.files[whole] = record.bytes
    return seen


def _in_folder(store: LocalStore, folder: str) -> _Seen:
    """With what begins with a dot, which a store does not name."""
    seen = _Seen(folder, {}, [])
    path = store.root / folder
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        name = str(PurePosixPath(folder, entry.name))
        try:
            if entry.is_dir():
                seen.folders.append(name)
            else:
                seen.files[name] = entry.stat().st_size
        except FileNotFoundError:  # deleted since it was listed, or a link to nothing
            if entry.is_symlink():
                seen.files[name] = None
    return seen


def _in_bucket(store: Store, folder: str) -> _Seen:
    """Which names are folders only their own look tells: what has nothing below is an object."""
    names = [str(PurePosixPath(folder, name)) for name in store.names(folder)]
    if folder and not names:
        return _Seen(folder, {folder: None}, [])
    own = [name for name in names if PurePosixPath(name).name == MANIFEST]
    return _Seen(folder, dict.fromkeys(own), [name for name in names if name not in own])
