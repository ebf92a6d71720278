"""The files of an artifact in another one, byte for byte."""

from __future__ import annotations

import shutil

from miner.artifacts.errors import DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, FileRecord

__all__ = ["copied"]


def copied(source: Artifact, draft: Draft) -> dict[str, FileRecord]:
    """Copy every file of `source` into `draft`; their records, ready to be committed.

    Raises DamagedArtifact when a file is not what was committed.
    """
    files = {}
    for name, record in source.manifest.files.items():
        copy = draft.scratch()
        try:
            shutil.copyfile(source.path(name), copy)
            files[name] = draft.adopt(name, copy, record.rows)
        finally:
            copy.unlink(missing_ok=True)
        if files[name] != record:
            raise DamagedArtifact(
                f"{source.where}/{name}: changed while it was copied; look after the disk, run again."
            )
    return files
