"""Choosing negatives from candidates by rules: the first k of every anchor that no rule drops, nearest first.

The first rule that drops a candidate is its reason. An anchor that is left with fewer than k is searched four times as
deep, and again, until k survive, nothing is left in the gallery, or `max_candidates` are reached; then it has fewer,
and the reason says how many were searched and which rule dropped how many. Nothing depends on the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.candidates import Candidates
from miner.artifacts.dropped import DROPPED, dropped_table
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, FileRecord
from miner.artifacts.negatives import NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.filters import Chosen, Context, Judge
from miner.filters._items import listed

__all__ = ["DEEPER", "Dropped", "Selected", "Selection", "depths_of", "write_selection"]

Rows = npt.NDArray[np.int64]
Deepen = Callable[[Rows, int], NegativeBlock]
Codes = npt.NDArray[np.uint8]

DEEPER = 4
MOST = 16  # times the candidates, where nobody says
_SURVIVES, _UNSEEN = 0, 255
_CELLS = 1 << 20  # candidates of a deeper search held at once


@dataclass(frozen=True)
class Dropped:
    """Candidates that a rule dropped, by anchor in id order and rank: all that were passed over for the negatives.

    `anchors` and `candidates` (n,) are rows of the Pairs, `ranks` (n,) places among the candidates, `rules` (n,)
    numbers of the rules from 0 on.
    """

    anchors: Rows
    ranks: npt.NDArray[np.int32]
    candidates: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    rules: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Selected:
    """The negatives of some anchors, and what was dropped before them."""

    negatives: NegativeBlock
    dropped: Dropped


def depths_of(num_candidates: int, max_candidates: int, gallery: int) -> tuple[int, ...]:
    """How deep an anchor is searched, one after the other: (100, 400, 1600)."""
    depths = [num_candidates]
    while depths[-1] < min(max_candidates, gallery):
        depths.append(min(DEEPER * depths[-1], max_candidates, gallery))
    return tuple(depths)


@dataclass
class Selection:
    """`k` negatives of every anchor from `candidates`, by `rules` in their order.

    `vectors` (items, dim) by side and row of `pairs` are those that were searched, where a rule needs them.
    `opposite` are the candidates of the other direction. `deepen(anchor_rows, depth)` searches some anchors again, as
    `mine_block` does; None where there is nothing to search in. `max_candidates` bounds how deep: 16 times the
    candidates if None. `contents(side)` is that of `Context`: None for the texts of `pairs`. Once `blocks` are through,
    `deepened` counts the anchors searched to each depth, and `counts` the dropped by rule.

    Raises BadInput for what a rule cannot do, and for a k that there are not enough items for.
    """

    candidates: Candidates
    pairs: Pairs
    rules: Sequence[Chosen]
    k: int
    vectors: Mapping[Side, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    opposite: Candidates | None = None
    contents: Callable[[Side], Sequence[str]] | None = None
    deepen: Deepen | None = None
    max_candidates: int | None = None
    threads: int = 1
    block: int | None = None
    deepened: dict[int, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _, gallery = sides(self.direction)
        self._size = len(self.pairs.ids(gallery))
        if not 1 <= self.k <= self._size:
            raise BadInput(f"k = {self.k}; ask for 1 to {self._size} negatives, as there are {self._size} {gallery}s.")
        if len(self.rules) >= _UNSEEN:
            raise BadInput(f"{len(self.rules)} rules; give fewer than {_UNSEEN}.")
        width = self.candidates.num_candidates
        most = MOST * width if self.max_candidates is None else self.max_candidates
        if most < width:
            raise BadInput(
                f"max_candidates = {most}, but {width} candidates were searched for every anchor; give no fewer."
            )
        self._most = most if self.deepen is not None else width
        self._depths = depths_of(width, self._most, self._size)
        offsets, own = self.pairs.positives_of(self.direction)
        self._num_own = np.diff(offsets)
        self._own = np.repeat(np.arange(len(offsets) - 1), self._num_own) * self._size + own
        self._own.sort()
        self._judges: list[Judge] = []

    @property
    def direction(self) -> Direction | Within:
        return self.candidates.direction

    def about(self) -> dict[str, Any]:
        """What determines the selection, as JSON takes it. Raises BadInput for a file of a rule that is not there."""
        said: dict[str, Any] = {
            "candidates": self.candidates.fingerprint,
            "num_candidates": self.candidates.num_candidates,
            "max_candidates": self._most,
            "rules": [rule.settings() for rule in self.rules],
        }
        return said if self.opposite is None else {**said, "opposite": self.opposite.fingerprint}

    def blocks(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Selected]:
        """Every anchor in id order, block by block. Raises BadInput, also for vectors other than the candidates'."""
        self.counts.update({rule.name: 0 for rule in self.rules})
        self._judges = []
        for rule in self.rules:
            judges = tuple(self._judges)
            self._judges.append(rule.rule.prepare(rule.config, self._context(judges)))
        done = 0
        for block in self._base():
            for selected in self._select(block):
                done += len(selected.negatives)
                number = np.bincount(selected.dropped.rules, minlength=len(self.rules))
                for rule, count in zip(self.rules, number.tolist(), strict=True):
                    self.counts[rule.name] += count
                yield selected
                progress(done, len(self.candidates))

    def _context(self, judges: tuple[Judge, ...]) -> Context:
        """What the rule after `judges` sees."""

        def survivors(first: int | None) -> Iterator[NegativeBlock]:
            for block in self._base():
                yield self._left(block, judges, first)

        def deeper(anchor_rows: Rows, depth: int) -> NegativeBlock:
            return self._left(self._deeper(anchor_rows, depth), judges, None)

        def candidates(direction: Direction | Within) -> Candidates | None:
            known: dict[str, Candidates] = {
                each.direction: each for each in (self.candidates, self.opposite) if each is not None
            }
            return known.get(direction)

        looks = (survivors, deeper, candidates, self.contents or self._texts)
        return Context(self.pairs, self.direction, self.k, self._depths, self.vectors, *looks, self.threads)

    def _texts(self, side: Side) -> Sequence[str]:
        if side == "text" and self.pairs.texts:
            return self.pairs.texts
        option, what = ("--texts", "text") if side == "text" else ("--images", "path")
        raise BadInput(f"a rule looks at the {side}s themselves; give a table of id and {what} with {option}.")

    def _base(self) -> Iterator[NegativeBlock]:
        """The candidates that were searched first."""
        width = self.candidates.num_candidates
        for block in self.candidates.blocks(self.block or max(64, _CELLS // width)):
            filled = block.negatives >= 0
            if not np.isfinite(block.scores[filled]).all() or (filled[:, 1:] & ~filled[:, :-1]).any():
                raise DamagedArtifact(
                    f"candidates of {self.direction}: a candidate without a finite score, or behind an empty place; "
                    "search again."
                )
            yield block

    def _deeper(self, anchor_rows: Rows, depth: int) -> NegativeBlock:
        assert self.deepen is not None
        return self.deepen(anchor_rows, depth)

    def _left(self, block: NegativeBlock, judges: Sequence[Judge], first: int | None) -> NegativeBlock:
        codes = self._judged(block, judges, first)
        left = codes == _SURVIVES
        negatives = np.where(left, block.negatives, np.int32(-1))
        return replace(block, negatives=negatives, scores=np.where(left, block.scores, np.float32(np.nan)))

    def _judged(self, block: NegativeBlock, judges: Sequence[Judge], first: int | None) -> Codes:
        """(anchors, width): 0 where a candidate survives, 1 where the first rule drops it, 2 the second and so on; 255
        where there is none, or the anchor has its `first` survivors already."""
        codes = np.full(block.negatives.shape, _UNSEEN, dtype=np.uint8)
        width = block.negatives.shape[1]
        pace = width if first is None else max(16, first)
        looking = np.arange(len(block))
        survivors = np.zeros(len(block), dtype=np.int64)
        for start in range(0, width, pace):
            part = _columns(block, looking, start, start + pace)
            found = _verdicts(part, judges, start)
            if first is not None:
                kept = survivors[looking, None] + np.cumsum(found == _SURVIVES, axis=1)
                found[(kept > first) | ((kept == first) & (found != _SURVIVES))] = _UNSEEN
                survivors[looking] = kept[:, -1]
            codes[looking, start : start + pace] = found
            if first is not None:
                looking = looking[survivors[looking] < first]
            if not len(looking):
                break
        return codes

    def _select(self, block: NegativeBlock) -> Iterator[Selected]:
        """The anchors of a block, in parts whose deeper searches fit into memory."""
        codes = self._judged(block, self._judges, self.k)
        found = (codes == _SURVIVES).sum(1)
        short = (found < self.k) & (block.negatives[:, -1] >= 0) & (len(self._depths) > 1)
        part = np.cumsum(short) // max(1, _CELLS // self._depths[-1])
        for number in np.unique(part):
            rows = np.flatnonzero(part == number)
            start, stop = int(rows[0]), int(rows[-1]) + 1
            yield self._part(block.cut(start, stop), codes[start:stop], short[start:stop])

    def _part(self, block: NegativeBlock, codes: Codes, short: npt.NDArray[np.bool_]) -> Selected:
        pieces = [(np.flatnonzero(~short), *_take(block, codes, ~short))]
        going = np.flatnonzero(short)
        for depth in self._depths[1:]:
            if not len(going):
                break
            deeper = self._deeper(block.anchor_rows[going], depth)
            self._check_same(block, going, deeper)
            self.deepened[depth] = self.deepened.get(depth, 0) + len(going)
            judged = self._judged(deeper, self._judges, self.k)
            # Who has too few goes on, unless there is no more.
            enough = (judged == _SURVIVES).sum(1) >= self.k
            ended = enough | (deeper.negatives[:, -1] < 0) | (depth == self._depths[-1])
            pieces.append((going[ended], *_take(deeper, judged, ended)))
            going = going[~ended]
        return self._selected(block, pieces)

    def _check_same(self, block: NegativeBlock, rows: Rows, deeper: NegativeBlock) -> None:
        width = block.negatives.shape[1]
        same = (deeper.negatives[:, :width] == block.negatives[rows]).all(1)
        if not same.all():
            anchors, _ = sides(self.direction)
            name = self.pairs.ids(anchors)[int(block.anchor_rows[rows[np.argmin(same)]])]
            raise BadInput(
                f"{anchors} {name!r}: searching deeper does not begin with its candidates; the vectors are not those "
                "that they were searched in: give these, or search again."
            )

    def _selected(self, block: NegativeBlock, pieces: list[tuple[Rows, NegativeBlock, Codes]]) -> Selected:
        """Put together what was found for the anchors at these places of the block."""
        negatives = np.full((len(block), self.k), -1, dtype=np.int32)
        scores = np.full((len(block), self.k), np.nan, dtype=np.float32)
        reasons: dict[int, str] = {}
        dropped: list[tuple[npt.NDArray[Any], ...]] = []
        for places, found, codes in pieces:
            at, rank = np.nonzero(codes == _SURVIVES)
            slot = np.cumsum(codes == _SURVIVES, axis=1)[at, rank] - 1
            negatives[places[at], slot], scores[places[at], slot] = found.negatives[at, rank], found.scores[at, rank]
            for short in np.flatnonzero((codes == _SURVIVES).sum(1) < self.k):
                row = int(found.anchor_rows[short])
                reasons[row] = self._reason(row, codes[short], found.negatives[short])
            at, rank = np.nonzero((codes != _SURVIVES) & (codes != _UNSEEN))
            values = (found.negatives[at, rank], found.scores[at, rank], codes[at, rank] - 1)
            dropped.append((places[at], rank, *values))
        self._check_own(block.anchor_rows, negatives)
        columns = [np.concatenate(column) for column in zip(*dropped, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        at, ranks, items, dropped_scores, rules = (column[order] for column in columns)
        return Selected(
            NegativeBlock(block.anchor_rows, negatives, scores, block.lowest_positive, reasons),
            Dropped(block.anchor_rows[at], ranks.astype(np.int32), items, dropped_scores, rules.astype(np.uint8)),
        )

    def _reason(self, row: int, codes: Codes, candidates: npt.NDArray[np.int32]) -> str:
        """Why an anchor has fewer than k, in figures that add up."""
        _, gallery = sides(self.direction)
        searched = int((candidates >= 0).sum())
        dropped = np.bincount(codes, minlength=_UNSEEN)[1 : len(self.rules) + 1].tolist()
        by_rule = [f"{count} dropped by {rule.name}" for rule, count in zip(self.rules, dropped, strict=True) if count]
        own = int(self._num_own[row])
        if searched == self._size - own:
            ended = f"; the other {own} are its positives"
        elif self.deepen is None:
            ended = "; nothing to search deeper in"
        elif searched < min(self._most, self._size):
            ended = "; the search found no more"
        else:
            ended = f"; max_candidates is {self._most}"
        return f"searched {searched} of {self._size} {gallery}s: {', '.join(by_rule) or 'none dropped'}{ended}"

    def _check_own(self, anchor_rows: Rows, negatives: npt.NDArray[np.int32]) -> None:
        """A positive is never a negative, whoever wrote the candidates."""
        there = negatives >= 0
        if listed(self._own, (anchor_rows[:, None] * self._size + negatives)[there]).any():
            raise DamagedArtifact(f"candidates of {self.direction}: they hold an anchor's own positive; search again.")


def _columns(block: NegativeBlock, rows: Rows, start: int, stop: int) -> NegativeBlock:
    at = np.s_[rows, start:stop]
    return NegativeBlock(
        block.anchor_rows[rows], block.negatives[at], block.scores[at], block.lowest_positive[rows]
    )  # fmt: skip


def _verdicts(part: NegativeBlock, judges: Sequence[Judge], rank: int) -> Codes:
    """As `_judged`, of all candidates of a part, whose first column has this rank."""
    codes = np.where(part.negatives >= 0, _SURVIVES, _UNSEEN).astype(np.uint8)
    for number, judge in enumerate(judges, 1):
        drop = judge(part, rank) & (codes == _SURVIVES)
        if drop.any():
            codes[drop] = number
            left = codes == _SURVIVES
            part = replace(
                part,
                negatives=np.where(left, part.negatives, np.int32(-1)),
                scores=np.where(left, part.scores, np.float32(np.nan)),
            )
    return codes


def _take(block: NegativeBlock, codes: Codes, rows: npt.NDArray[np.bool_]) -> tuple[NegativeBlock, Codes]:
    return _columns(block, np.flatnonzero(rows), 0, block.negatives.shape[1]), codes[rows]


def write_selection(
    draft: Draft,
    selection: Selection,
    provenance: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Artifact:
    """Write and commit the table of a selection, with `dropped.parquet` beside it; memory is bounded by a block.

    What was done is in the provenance under "filter"; how many each rule dropped, and how many anchors were searched
    how deep, in the manifest under "dropped" and "deepened". Raises BadInput, DamagedArtifact.
    """
    names = [rule.name for rule in selection.rules]
    with dropped_table(draft, selection.pairs, selection.direction, names) as table:

        def negatives() -> Iterator[NegativeBlock]:
            for each in selection.blocks(progress):
                dropped = each.dropped
                table.add(dropped.anchors, dropped.ranks, dropped.candidates, dropped.scores, dropped.rules)
                yield each.negatives

        def beside() -> tuple[dict[str, FileRecord], dict[str, Any]]:
            deepened = {str(depth): anchors for depth, anchors in selection.deepened.items()}
            return {DROPPED: table.finish()}, {"dropped": dict(selection.counts), "deepened": deepened}

        about = {**provenance, "filter": selection.about()}
        return write_negatives(draft, negatives(), selection.pairs, selection.direction, selection.k, about, beside)
