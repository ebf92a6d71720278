"""Plain JSON lines: one anchor per line, by id, with rank and score of every negative.

    anchor_id    string
    positives    ids of all its positives, in id order
    negatives    [{"id", "score", "rank"}], rank 0 = hardest in the table

Nothing else reads exactly this; it is for readers of your own. Every anchor has its line, also one without a negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from miner.export._json import write_lines
from miner.export._mined import Mined, Needs

__all__ = ["SUFFIX", "Config", "files", "read_with", "write"]

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Config:
    """No settings. Items are named by id; texts and paths are for the other formats."""


def files(config: Config, out: Path) -> tuple[Path, ...]:
    return (out,)


def write(config: Config, mined: Mined, drafts: Mapping[Path, Path]) -> int:
    """Raises BadInput when contents were given, which have no place here."""
    if (mined.anchors.kind, mined.gallery.kind) != ("id", "id"):
        raise BadInput("format jsonl names items by id; leave --texts and --images out, or choose another format.")
    (lines,) = drafts.values()
    return write_lines(lines, _records(mined))


def read_with(config: Config, out: Path) -> str:
    return f"pandas.read_json({str(out)!r}, lines=True, dtype=False)"


def _records(mined: Mined) -> Iterator[dict[str, Any]]:
    ids, gallery = mined.anchor_ids, mined.gallery_ids
    for anchor in mined.each(Needs(negatives=0)):
        ranked = zip(anchor.ranks, anchor.negatives, anchor.scores, strict=True)
        yield {
            "anchor_id": ids[anchor.row],
            "positives": [gallery[row] for row in anchor.positives],
            "negatives": [{"id": gallery[row], "score": score, "rank": rank} for rank, row, score in ranked],
        }
