"""Epoch files: the whole training state after an epoch, so that a killed training goes on bit by bit where it was.

    epoch-0003.safetensors   raw weights, averaged weights, Adam's moments
    epoch-0003.json          which training this is (`key`), SHA-256 of the other file, updates, the logs so far

Both are written to a temporary name and renamed, the .json last. The two newest are kept.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from miner.artifacts.manifest import digest_file

__all__ = ["EpochFile", "read_latest", "write"]

_NAME = re.compile(r"epoch-(\d+)\.json")
_KEPT = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochFile:
    """State after `epoch` (a global number: the next epoch to train is `epoch + 1`)."""

    epoch: int
    updates: int
    tensors: dict[str, Tensor]
    logs: list[dict[str, Any]]


def write(scratch: Path, key: str, state: EpochFile) -> None:
    """Write one epoch's files, then delete all but the two newest."""
    scratch.mkdir(parents=True, exist_ok=True)
    tensors = scratch / f"epoch-{state.epoch:04d}.safetensors"
    _replace(tensors, save(state.tensors))
    about = {"key": key, "sha256": digest_file(tensors), "updates": state.updates, "logs": state.logs}
    _replace(tensors.with_suffix(".json"), json.dumps(about).encode())
    for _, path in _found(scratch)[:-_KEPT]:
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)


def read_latest(scratch: Path, key: str, last: int) -> EpochFile | None:
    """The newest whole file of the training `key`, not beyond epoch `last`. Others are passed over with a notice."""
    for epoch, path in reversed(_found(scratch)):
        if epoch > last:
            continue
        tensors = path.with_suffix(".safetensors")
        try:
            about = json.loads(path.read_bytes())
            if about["key"] != key:
                log.warning("%s belongs to another training (settings, data, tables or start differ); ignored.", path)
                continue
            if digest_file(tensors) != about["sha256"]:
                raise ValueError("its SHA-256 differs")
            return EpochFile(epoch, int(about["updates"]), load(tensors.read_bytes()), list(about["logs"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s is damaged (%s); ignored, an earlier state is used.", path, error)
    return None


def _found(scratch: Path) -> list[tuple[int, Path]]:
    if not scratch.is_dir():
        return []
    return sorted((int(match[1]), path) for path in scratch.iterdir() if (match := _NAME.fullmatch(path.name)))


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
