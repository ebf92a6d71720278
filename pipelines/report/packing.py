"""Arrays and plain values as one string that a page carries: gzip, then base64.

Uncompressed: 4 bytes, little-endian, of the length of a JSON head; the head, {"arrays": {name: [kind, offset, length]},
"values": {...}}; then the arrays, each at an offset from the head's end that its items divide. `unpack` in data.js
reads it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

__all__ = ["pack"]

_KINDS = ("u1", "u2", "i4", "f4")
_ALIGNED = 8


def pack(arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> str:
    """The same string for the same content; the arrays are flattened, of kind u1, u2, i4 or f4."""
    heads: dict[str, tuple[str, int, int]] = {}
    pieces: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        kind = array.dtype.str[1:]
        assert kind in _KINDS, (name, kind)
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        heads[name] = (kind, offset, array.size)
        padding = -len(data) % _ALIGNED
        pieces += [data, bytes(padding)]
        offset += len(data) + padding
    said = json.dumps({"arrays": heads, "values": values}, ensure_ascii=False, allow_nan=False, sort_keys=True)
    head = said.encode("utf-8", "replace")
    head += b" " * (-(len(head) + 4) % _ALIGNED)
    whole = len(head).to_bytes(4, "little") + head + b"".join(pieces)
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode("ascii")
