"""What is wrong with a negative table, found while its rows pass by once.

Memory is bounded by a block of rows and a few numbers per item, not by the table. What a table alone can show is in
`miner.audit_alone`; beside pairs and texts, in `miner.audit_against`; beside vectors, in `miner.audit_vectors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction, Side, Within, sides
from miner.artifacts.parquet import open_parquet
from miner.rows import DIRECTIONS, Lookup, RowBlock, Rows

__all__ = ["EXAMPLES", "Check", "Finding", "RowCheck", "Subject", "audit", "number_of"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """`count` rows (anchors, ids, ...) are wrong: `bad`, or only worth a look. `examples` are the first of them."""

    name: str
    bad: bool
    count: int
    said: str
    advice: str
    examples: tuple[dict[str, Any], ...] = ()


@dataclass
class Subject:
    """The table under audit, and what is counted of every table. `direction` is None where nobody knows it."""

    rows: Rows
    direction: str | None
    anchors: Lookup = field(default_factory=Lookup)
    gallery: Lookup = field(default_factory=Lookup)
    _anchors: list[Ints] = field(default_factory=list)
    _counts: list[Ints] = field(default_factory=list)
    known: int = 0
    total_hardness: float = 0.0
    above: int = 0

    def __post_init__(self) -> None:
        if self.one_side:
            self.gallery = self.anchors

    @property
    def one_side(self) -> bool:
        """Whether anchors and negatives are items of one side."""
        return self.direction in get_args(Within)

    @property
    def way(self) -> Direction | Within:
        """The direction, where it must be known."""
        assert self.direction in DIRECTIONS
        return cast("Direction | Within", self.direction)

    @property
    def sides(self) -> tuple[Side, Side]:
        """(anchor side, gallery side), where the direction must be known."""
        return sides(self.way)

    @property
    def committed(self) -> bool:
        return self.rows.artifact is not None

    def see(self, block: RowBlock) -> None:
        self._anchors.append(block.anchors)
        self._counts.append(block.counts)
        hardness = np.subtract(block.scores, block.lowest_positive, dtype=np.float64)
        finite = np.isfinite(hardness)
        self.known += int(finite.sum())
        self.total_hardness += float(hardness[finite].sum())
        self.above += int((hardness[finite] > 0).sum())

    @property
    def hardness(self) -> float:
        """Mean of score - lowest positive over the rows that have both."""
        return self.total_hardness / max(self.known, 1)

    @property
    def share_above(self) -> float:
        """Of these rows, the share that scores above the lowest positive."""
        return self.above / max(self.known, 1)

    @cached_property
    def sequence(self) -> Ints:
        """(anchors,) their numbers in the order of the file; not before all rows were seen."""
        return np.concatenate(self._anchors) if self._anchors else np.empty(0, np.int64)

    @cached_property
    def counts(self) -> Ints:
        """(anchors,) the rows of each."""
        return np.concatenate(self._counts) if self._counts else np.empty(0, np.int64)

    @property
    def k(self) -> int:
        """Negatives that an anchor should have: as the provenance says, else the most that one has."""
        said = self.rows.provenance.get("k")
        return said if isinstance(said, int) else int(self.counts.max(initial=0))

    @cached_property
    def shortfalls(self) -> dict[str, list[Any]] | None:
        """Columns of the list of anchors with fewer than k; None where there is no such list."""
        if self.rows.artifact is None:
            return None
        found = open_parquet(self.rows.artifact, "shortfalls.parquet").read().to_pydict()
        return {str(name): list(column) for name, column in found.items()}

    def example(self, block: RowBlock, row: int) -> dict[str, Any]:
        """A row for a person, with the ids in it."""
        return {
            "anchor_id": self.anchors.name(block.anchors[block.of[row]]),
            "rank": int(block.ranks[row]) if block.ranks[row] >= 0 else None,
            "negative_id": self.gallery.name(block.negatives[row]),
            "score": number_of(block.scores[row]),
            "lowest_positive": number_of(block.lowest_positive[row]),
            "row": block.first + row,
        }


def number_of(value: Any) -> float | str:
    """A float, in the digits of its type; as a word when it is none that JSON knows."""
    return float(str(value)) if np.isfinite(value) else str(value)


class Check(Protocol):
    """Sees every block once, and says at the end what it found."""

    name: str

    def see(self, block: RowBlock) -> None: ...

    def findings(self) -> Iterable[Finding]: ...


class RowCheck:
    """Counts the rows for which `wrong(block)` (n,) is true; `said` goes on after "12 rows of 9 anchors"."""

    def __init__(
        self,
        subject: Subject,
        name: str,
        said: str,
        advice: str,
        wrong: Callable[[RowBlock], Mask],
    ) -> None:
        self.subject, self.name, self.said, self.advice, self.wrong = subject, name, said, advice, wrong
        self.rows = self.anchors = 0
        self.examples: list[dict[str, Any]] = []

    def see(self, block: RowBlock) -> None:
        at = np.flatnonzero(self.wrong(block))
        self.rows += len(at)
        self.anchors += len(np.unique(block.of[at]))
        wanted = EXAMPLES - len(self.examples)
        self.examples += [self.subject.example(block, row) for row in at[:wanted].tolist()]

    def findings(self) -> Iterable[Finding]:
        if self.rows:
            said = f"{self.rows} row(s) of {self.anchors} anchor(s) {self.said}"
            yield Finding(self.name, True, self.rows, said, self.advice, tuple(self.examples))


def audit(subject: Subject, checks: Sequence[Check], progress: Callable[[int, int], None]) -> list[Finding]:
    """Every finding of every check, after one pass over the table; bad ones first.

    `progress(rows, all)` is told. Raises BadInput for a file that cannot be read to its end.
    """
    done = 0
    for block in subject.rows.blocks(subject.anchors, subject.gallery):
        subject.see(block)
        for check in checks:
            check.see(block)
        done += len(block.negatives)
        progress(done, subject.rows.num_rows)
    found = [finding for check in checks for finding in check.findings()]
    return sorted(found, key=lambda finding: not finding.bad)
