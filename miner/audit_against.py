"""What can be wrong with a negative table beside the pairs it was mined for, and their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.audit import EXAMPLES, Check, Finding, RowCheck, Subject
from miner.filters._texts import normalised
from miner.rows import DIRECTIONS, Lookup, RowBlock, Rows

__all__ = ["beside_pairs", "beside_texts", "direction_of", "known_rows"]

Ints = npt.NDArray[np.int64]
_SAID = {"image": "images", "text": "texts"}


def direction_of(rows: Rows, asked: str | None, pairs: Pairs | None) -> str | None:
    """The direction that the table says it is of, else the one asked for, else the one its first ids fit.

    None without pairs, when nothing says. Raises BadInput when two of these differ or the ids fit none, or several.
    """
    if rows.direction is not None:
        if asked is not None and asked != rows.direction:
            raise BadInput(f"{rows.where}: this table is of direction {rows.direction}, but {asked} was asked for.")
        return rows.direction
    if asked is not None or pairs is None:
        return asked
    anchors, gallery = Lookup(), Lookup()
    if next(rows.blocks(anchors, gallery), None) is None:
        raise BadInput(f"{rows.where}: no row, so its direction cannot be seen; say --direction.")
    fits = {
        name: min(
            float((pairs.ids(side).rows(ids.ids) >= 0).mean())
            for side, ids in zip(sides(name), (anchors, gallery), strict=True)
        )
        for name in get_args(Direction)
    }
    best: str
    best, other = sorted(fits, key=lambda name: -fits[name])
    if fits[best] == 0 or fits[best] == fits[other]:
        raise BadInput(
            f"{rows.where}: its ids fit {'both directions' if fits[best] else 'neither side'} of {pairs.name} (anchors "
            f"such as {anchors.name(0)!r}, negatives such as {gallery.name(0)!r}); say --direction "
            f"{' or '.join(DIRECTIONS)}{'' if fits[best] else ', or give the pairs of this table'}."
        )
    return best


def beside_pairs(subject: Subject, pairs: Pairs) -> list[Check]:
    """Ids that the pairs do not know, anchors that the table does not know, positives among the negatives."""
    anchors, gallery = (_SAID[side] for side in subject.sides)
    offsets, positives = pairs.positives_of(subject.way)
    size = len(pairs.ids(subject.sides[1]))
    own = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * np.int64(size) + positives
    own.sort()

    def positive(block: RowBlock) -> npt.NDArray[np.bool_]:
        anchor = block.anchors[block.of]
        known = known_rows(subject, block)
        wrong = known & _among(own, anchor * size + np.where(known, block.negatives, 0))
        return np.asarray(wrong & ~(subject.one_side & (anchor == block.negatives)))

    return [
        RowCheck(
            subject,
            "unknown anchors",
            f"have an anchor_id that is none of the {len(pairs.ids(subject.sides[0]))} {anchors} of the pairs",
            "Give the pairs that the table was mined for, or mine again for these.",
            lambda block: (block.anchors >= subject.anchors.num_known)[block.of],
        ),
        RowCheck(
            subject,
            "unknown negatives",
            f"have a negative_id that is none of the {size} {gallery} of the pairs",
            "Give the pairs that the table was mined for, or mine again for these.",
            lambda block: block.negatives >= subject.gallery.num_known,
        ),
        RowCheck(
            subject,
            "positives among negatives",
            "name a positive of the anchor as its negative",
            "Training would push apart what belongs together: drop these rows, or mine again for these pairs.",
            positive,
        ),
        _Missing(subject),
        _OtherPairs(subject, pairs),
    ]


class _Missing:
    """Anchors of the pairs that the table passes over in silence."""

    name = "missing anchors"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def see(self, block: RowBlock) -> None:
        pass

    def findings(self) -> Iterable[Finding]:
        import pyarrow as pa

        seen = np.zeros(len(self.subject.anchors) + 1, dtype=np.bool_)
        seen[self.subject.sequence] = True
        if self.subject.shortfalls is not None:
            seen[self.subject.anchors.numbers(pa.array(self.subject.shortfalls["anchor_id"], pa.string()))] = True
        total = self.subject.anchors.num_known
        missing = np.flatnonzero(~seen[:total])
        if len(missing):
            yield Finding(
                self.name,
                self.subject.committed,
                len(missing),
                f"{len(missing)} of the {total} anchors of the pairs have no row"
                + (", and shortfalls.parquet does not list them" if self.subject.committed else ""),
                "They get no negatives in training: mine for these pairs.",
                tuple({"anchor_id": self.subject.anchors.name(number)} for number in missing[:EXAMPLES]),
            )


class _OtherPairs:
    """Whether these are the pairs that the table says it was mined for."""

    name = "other pairs"

    def __init__(self, subject: Subject, pairs: Pairs) -> None:
        self.subject, self.pairs = subject, pairs

    def see(self, block: RowBlock) -> None:
        pass

    def findings(self) -> Iterable[Finding]:
        said = self.subject.rows.provenance.get("pairs")
        # A table mined from vectors and ids alone knows no captions.
        known = {self.pairs.unordered_fingerprint, replace(self.pairs, texts=()).unordered_fingerprint}
        if said is not None and said not in known:
            yield Finding(
                self.name,
                True,
                1,
                f"the table was mined for pairs with fingerprint {str(said)[:12]}, {self.pairs.name} has "
                f"{self.pairs.unordered_fingerprint[:12]}",
                "Pairs added since may be among its negatives: give the pairs it was mined for, or mine again.",
            )


def beside_texts(subject: Subject, pairs: Pairs, texts: Sequence[str]) -> list[Check]:
    """Negatives in the words of a positive, as the rule same-text tells; `texts` by row of the pairs. None for i2i."""
    direction = subject.way
    if direction == "i2i":
        return []
    groups: dict[str, int] = {}
    group = np.array([groups.setdefault(normalised(text), len(groups)) for text in texts], dtype=np.int64)
    # For t2i: the texts of the image that is called a negative, and the anchor's own words.
    keys, texts_of = pairs.positives_of("i2t" if direction == "t2i" else direction)
    own = np.unique(np.repeat(np.arange(len(keys) - 1), np.diff(keys)) * np.int64(len(groups)) + group[texts_of])
    real, real_rows = pairs.positives_of(direction)
    size = np.int64(len(pairs.ids(sides(direction)[1])))
    linked = np.sort(np.repeat(np.arange(len(real) - 1), np.diff(real)) * size + real_rows)

    def same(block: RowBlock) -> npt.NDArray[np.bool_]:
        known = known_rows(subject, block)
        anchor, negative = (np.where(known, rows, 0) for rows in (block.anchors[block.of], block.negatives))
        item, text = (negative, anchor) if direction == "t2i" else (anchor, negative)
        same = _among(own, item * len(groups) + group[text])
        return np.asarray(known & same & ~_among(linked, anchor * size + negative))

    said = (
        "name an image one of whose texts has the anchor's words" if direction == "t2i" else "have a positive's words"
    )
    return [
        RowCheck(
            subject,
            "duplicates of positives",
            f"{said} (case, punctuation and spaces apart)",
            "They are positives in all but name: add these pairs, or drop them with --rule same-text.",
            same,
        )
    ]


def known_rows(subject: Subject, block: RowBlock) -> npt.NDArray[np.bool_]:
    """(n,) whether both ids of a row are among those of the pairs."""
    anchor = (block.anchors >= 0) & (block.anchors < subject.anchors.num_known)
    return anchor[block.of] & (block.negatives >= 0) & (block.negatives < subject.gallery.num_known)


def _among(ordered: Ints, wanted: Ints) -> npt.NDArray[np.bool_]:
    """(n,) whether each of `wanted` is one of `ordered`."""
    place = np.searchsorted(ordered, wanted)
    return np.asarray(ordered[np.minimum(place, len(ordered) - 1)] == wanted)
