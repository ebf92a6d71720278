"""An artifact is a folder that has a manifest: written last, create-if-absent, listing every file with its SHA-256.

    manifest.json   format, kind, input_key, inputs, files: {name: {bytes, rows, sha256}}, meta, fingerprint

`inputs` is everything that determines the output (parents' fingerprints, parameters, seeds, versions) and `input_key`
its hash: a stage is reused only when the key is the same. `fingerprint` hashes the manifest itself, hence every file,
and is what children record. Nothing in a manifest depends on when, where or by how many workers it was made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput, DamagedArtifact, Retryable
from miner.artifacts.place import Place
from miner.artifacts.probe import proven_once
from miner.artifacts.records import FileRecord, digest_file, whole_copy
from miner.artifacts.sealed import sealed, unsealed
from miner.artifacts.store import Store

__all__ = [
    "MANIFEST",
    "Artifact",
    "Draft",
    "FileRecord",
    "Manifest",
    "canonical_json",
    "check_kind",
    "digest_file",
    "find_artifact",
    "input_key",
    "open_artifact",
]

MANIFEST = "manifest.json"
_FORMAT = "quintain/1"
_MADE_BY = {
    "candidates": "candidates/ in the folder that `miner mine --rule ... --out` wrote",
    "checkpoint": "the folder that `trainer fit --out` wrote, or best/ in a run's folder",
    "embeddings": "image/ or text/ in the folder that `trainer encode --out` wrote",
    "index": "the folder that `miner build-index --out` wrote",
    "negatives": "i2t/ or t2i/ in the folder that `miner mine --out` wrote, or a folder in rounds/*/mine-i2t of a run",
}
_COMMITS = 3  # tries
_BASENAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no NaN, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"


def input_key(kind: str, inputs: Mapping[str, Any]) -> str:
    """SHA-256 over the kind and everything that determines the output."""
    return hashlib.sha256(canonical_json({"kind": kind, "inputs": inputs})).hexdigest()


@dataclass(frozen=True)
class Manifest:
    kind: str
    inputs: dict[str, Any]
    files: dict[str, FileRecord]
    meta: dict[str, Any]

    def _body(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "input_key": input_key(self.kind, self.inputs),
            "inputs": self.inputs,
            "files": {name: asdict(record) for name, record in self.files.items()},
            "meta": self.meta,
        }

    @property
    def input_key(self) -> str:
        return input_key(self.kind, self.inputs)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(canonical_json(self._body())).hexdigest()

    def dumps(self) -> bytes:
        return canonical_json({**self._body(), "fingerprint": self.fingerprint})

    @classmethod
    def loads(cls, data: bytes, where: str) -> Manifest:
        """Parse and check. Raises DamagedArtifact unless every byte is as it was written."""
        try:
            raw = json.loads(data)
            files = {name: FileRecord(**record) for name, record in raw["files"].items()}
            manifest = cls(raw["kind"], raw["inputs"], files, raw["meta"])
            intact = manifest.dumps() == data
        except (ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            raise DamagedArtifact(
                f"{where}: the manifest is damaged (its hash does not fit its text). "
                "Delete that folder and run the command that made it again, which rebuilds it."
            )
        for name in manifest.files:
            _check_basename(name, where)
        return manifest


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. Files are hashed when they are read: damage is found before it is used."""

    store: Store
    prefix: str
    manifest: Manifest

    @property
    def where(self) -> str:
        return f"{self.store.url}/{self.prefix}".rstrip("/").removesuffix("/.")

    def read(self, name: str) -> bytes:
        """Bytes of one file, read once and checked. Raises DamagedArtifact."""
        record = self._record(name)
        try:
            data = self.store.read(f"{self.prefix}/{name}")
        except FileNotFoundError as missing:
            raise self._damaged(name, "is missing") from missing
        if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
            raise self._damaged(name, "is not the file that was committed")
        return data

    def path(self, name: str) -> Path:
        """Local path of one file, checked as it is now, to memory-map. Raises DamagedArtifact."""
        record = self._record(name)
        try:
            path = whole_copy(self.store, f"{self.prefix}/{name}", record)
        except FileNotFoundError as missing:
            raise self._damaged(name, "is missing") from missing
        if path is None:
            raise self._damaged(name, "is not the file that was committed")
        return path

    def verify(self) -> None:
        """Hash every file. Raises DamagedArtifact."""
        for name in self.manifest.files:
            self.path(name)

    def _record(self, name: str) -> FileRecord:
        if name not in self.manifest.files:
            raise DamagedArtifact(
                f"{self.where}: the {self.manifest.kind} artifact has no file {name!r}; "
                f"it lists {', '.join(sorted(self.manifest.files)) or 'none'}."
            )
        return self.manifest.files[name]

    def _damaged(self, name: str, what: str) -> DamagedArtifact:
        return DamagedArtifact(
            f"{self.where}/{name} {what} (its SHA-256 differs from the manifest's or it is gone). "
            f"Delete the folder {self.where} and run the command that made it again, which rebuilds it."
        )


def find_artifact(store: Store, prefix: str) -> Artifact | None:
    """The artifact at `prefix`, or None where none was committed. Raises DamagedArtifact for a broken manifest."""
    try:
        data = store.read(f"{prefix}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Artifact(store, prefix, Manifest.loads(data, f"{store.url}/{prefix}"))


def open_artifact(where: Place | Path | str, kind: str) -> Artifact:
    """The artifact at a place. Raises BadInput when there is none or it is of another kind."""
    place = Place.of(where)
    artifact = find_artifact(place.store, place.name)
    if artifact is None:
        raise BadInput(f"{place}: no {kind} artifact here ({MANIFEST} is missing); give {_place(kind)}.")
    check_kind(artifact, kind)
    return artifact


def check_kind(artifact: Artifact, kind: str) -> None:
    """Raises BadInput for an artifact of another kind."""
    if (found := artifact.manifest.kind) != kind:
        raise BadInput(f"{artifact.where}: this is a {found!r} artifact, not a {kind!r} one; give {_place(kind)}.")


def _place(kind: str) -> str:
    """Which folder holds an artifact of this kind, by the command that wrote it."""
    return _MADE_BY.get(kind, "the folder a command wrote to")


@dataclass(frozen=True)
class Draft:
    """An artifact in the making: files first, `commit` last. Cheap to pickle, so that workers can add parts."""

    store: Store
    prefix: str
    kind: str
    inputs: dict[str, Any]

    def add(self, name: str, data: bytes, rows: int = 0) -> FileRecord:
        """Write one file from memory."""
        source = self.scratch()
        try:
            source.write_bytes(data)
            return self.adopt(name, source, rows)
        finally:
            source.unlink(missing_ok=True)

    def scratch(self, suffix: str = "") -> Path:
        """A local path to write a file to before `adopt`."""
        return self.store.scratch(self.prefix, suffix)

    def adopt(self, name: str, source: Path, rows: int = 0) -> FileRecord:
        """Hash a finished local file and move it in."""
        _check_basename(name, self.prefix)
        record = FileRecord(source.stat().st_size, rows, digest_file(source))
        self.store.put(f"{self.prefix}/{name}", source)
        return record

    def add_part(self, name: str, data: bytes, rows: int) -> FileRecord:
        """Write one part and then its record beside it: a part without a record was never finished."""
        return self._finished(name, self.add(name, data, rows))

    def adopt_part(self, name: str, source: Path, rows: int) -> FileRecord:
        """The same from a finished local file, which is moved."""
        return self._finished(name, self.adopt(name, source, rows))

    def _finished(self, name: str, record: FileRecord) -> FileRecord:
        done = {"input_key": input_key(self.kind, self.inputs), **asdict(record)}
        self.store.write(f"{self.prefix}/{name}.done", canonical_json(sealed(done)))
        return record

    def find_part(self, name: str) -> FileRecord | None:
        """The record of a part that a killed attempt at this very artifact finished, if its bytes are whole."""
        try:
            self.read_part(name)
            return self._part_record(name)
        except (DamagedArtifact, FileNotFoundError):
            return None

    def part_path(self, name: str) -> Path | None:
        """Local path of a part that was finished and is whole, to memory-map."""
        try:
            return whole_copy(self.store, f"{self.prefix}/{name}", self._part_record(name))
        except (DamagedArtifact, FileNotFoundError):
            return None

    def read_part(self, name: str) -> bytes:
        """Bytes of a finished part. Raises DamagedArtifact, or FileNotFoundError when it was never finished."""
        record = self._part_record(name)
        data = self.store.read(f"{self.prefix}/{name}")
        if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedArtifact(f"{self.store.url}/{self.prefix}/{name}: not the part that was written; run again.")
        return data

    def _part_record(self, name: str) -> FileRecord:
        where = f"{self.store.url}/{self.prefix}/{name}.done"
        data = self.store.read(f"{self.prefix}/{name}.done")
        try:
            done = unsealed(json.loads(data))
            key = done.pop("input_key")
            record = FileRecord(**done)
        except (ValueError, KeyError, TypeError, AttributeError) as broken:
            raise DamagedArtifact(f"{where}: not a part's record; run the same command again.") from broken
        if key != input_key(self.kind, self.inputs):
            raise DamagedArtifact(f"{where}: this part was made from other inputs; run the same command again.")
        return record

    def drop_part(self, name: str, *, keep_file: bool) -> None:
        """Forget a part's record, and the part too unless it is a file of the finished artifact."""
        self.store.remove(f"{self.prefix}/{name}.done")
        if not keep_file:
            self.store.remove(f"{self.prefix}/{name}")

    def committed(self) -> Artifact | None:
        """The finished artifact, when it is there already. Raises BadInput if another one is in its place."""
        found = find_artifact(self.store, self.prefix)
        if found is not None and (found.manifest.kind, found.manifest.inputs) != (self.kind, self.inputs):
            raise BadInput(
                f"{found.where}: a {found.manifest.kind} artifact made from other inputs is here already; "
                "nothing is overwritten: choose another output folder or delete this one."
            )
        return found

    def commit(self, files: Mapping[str, FileRecord], meta: Mapping[str, Any]) -> Artifact:
        """Write the manifest. If another writer was first, its artifact is the one that counts.

        Raises BadInput where the store cannot tell who was first, and when the artifact there has other inputs;
        Retryable where the store says that one is there, but has none.
        """
        manifest = Manifest(self.kind, dict(self.inputs), dict(files), dict(meta))
        proven_once(self.store)
        for _ in range(_COMMITS):
            self.store.create(f"{self.prefix}/{MANIFEST}", manifest.dumps())
            found = self.committed()
            if found is not None:
                return found
        raise Retryable(
            f"{self.store.url}/{self.prefix}: {MANIFEST} could not be written: the store says that it is there already "
            "and does not find it; run the same command again."
        )


def _check_basename(name: str, where: str) -> None:
    if not _BASENAME.fullmatch(name):
        raise DamagedArtifact(f"{where}: file name {name!r} is not a plain name; a manifest may only list such.")
