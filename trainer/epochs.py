"""Epoch files: the whole training state after an epoch, so that a killed training goes on bit by bit where it was.

    epoch-0003.safetensors   raw weights, averaged weights, Adam's moments
    epoch-0003.json          which training this is (`key`), SHA-256 of the other file, updates, the logs so far; sealed

Both appear whole, the .json last. The two newest are kept. They lie in a folder, or in the store of a run, where
another machine finds them too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from miner.artifacts.errors import QuintainError
from miner.artifacts.place import Place
from miner.artifacts.sealed import sealed, unsealed

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


def write(place: Place, key: str, state: EpochFile) -> None:
    """Write one epoch's files, then delete all but the two newest."""
    tensors = save(state.tensors)
    digest = hashlib.sha256(tensors).hexdigest()
    about = {"key": key, "sha256": digest, "updates": state.updates, "logs": state.logs}
    place.store.write(_tensors(place, state.epoch), tensors)
    place.store.write(_about(place, state.epoch), json.dumps(sealed(about)).encode())
    for epoch in _found(place)[:-_KEPT]:
        place.store.remove(_about(place, epoch))
        place.store.remove(_tensors(place, epoch))


def read_latest(place: Place, key: str, last: int) -> EpochFile | None:
    """The newest whole file of the training `key`, not beyond epoch `last`. Others are passed over with a notice.

    Raises BadInput or Retryable when an object store cannot be asked.
    """
    for epoch in reversed(_found(place)):
        if epoch > last:
            continue
        name = _about(place, epoch)
        where = f"{place.store.url}/{name}"
        try:
            about = unsealed(json.loads(place.store.read(name)))
            if about["key"] != key:
                log.warning("%s belongs to another training (settings, data, tables or start differ); ignored.", where)
                continue
            tensors = place.store.read(_tensors(place, epoch))
            if hashlib.sha256(tensors).hexdigest() != about["sha256"]:
                raise ValueError("its SHA-256 differs")
            return EpochFile(epoch, int(about["updates"]), load(tensors), list(about["logs"]))
        except QuintainError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s is damaged (%s); ignored, an earlier state is used.", where, error)
    return None


def _found(place: Place) -> list[int]:
    return sorted(int(match[1]) for name in place.names() if (match := _NAME.fullmatch(name)))


def _about(place: Place, epoch: int) -> str:
    return f"{place.name}/epoch-{epoch:04d}.json"


def _tensors(place: Place, epoch: int) -> str:
    return f"{place.name}/epoch-{epoch:04d}.safetensors"
