"""JSON that no manifest lists, with a hash of its own: records of parts, epoch files, a run's settings and log.

A changed bit often leaves valid JSON behind: a count, a seed, a number of rounds that nobody wrote. `check` is the hash
of everything else, so that such a value is not taken for the one that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["CHECK", "sealed", "unsealed"]

CHECK = "check"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value`, as JSON gives it back, with its hash under `check`."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return {**plain, CHECK: _digest(plain)}


def unsealed(raw: object) -> dict[str, Any]:
    """What was sealed. Raises ValueError where the hash is missing or another one."""
    if not isinstance(raw, dict) or raw.get(CHECK) != _digest(value := {k: v for k, v in raw.items() if k != CHECK}):
        raise ValueError("its hash does not fit")
    return value


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
