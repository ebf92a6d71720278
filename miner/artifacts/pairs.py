"""The dataset as every stage sees it: images, texts, and which belong together (many-to-many)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import Artifact, Draft
from miner.artifacts.parquet import open_parquet

__all__ = ["PAIRS", "Direction", "Pairs", "Side", "Within", "commit_pairs", "open_pairs", "sides"]

PAIRS = "pairs"
Side = Literal["image", "text"]
Direction = Literal["i2t", "t2i"]
Within = Literal["i2i", "t2t"]
Rows = npt.NDArray[np.int64]

_SIDES: dict[str, Side] = {"i": "image", "t": "text"}


def sides(direction: Direction | Within) -> tuple[Side, Side]:
    """(anchor side, gallery side) of a direction: i2t has images for anchors and searches texts; i2i, images both."""
    return _SIDES[direction[0]], _SIDES[direction[-1]]


@dataclass(frozen=True)
class Pairs:
    """Images, texts and the pairs between them.

    `image_ids` and `text_ids` are unique strings (any sequence of them is made `Ids`); a *row* is a position in one.
    `image_rows[p]` and `text_rows[p]` are the two ends of pair p, each pair once, sorted. `texts` are the captions
    themselves, by text row; empty for somebody who brings vectors only.

    Raises BadInput for an empty set, a duplicate id, a row outside its side, or an item without a positive.
    """

    image_ids: Ids
    text_ids: Ids
    image_rows: Rows
    text_rows: Rows
    texts: tuple[str, ...] = ()
    name: str = field(default="pairs", compare=False)

    def __post_init__(self) -> None:
        for side in ("image", "text"):
            ids = Ids(getattr(self, f"{side}_ids"))
            _check_ids(ids, side, self.name)
            object.__setattr__(self, f"{side}_ids", ids)
        if self.texts and len(self.texts) != len(self.text_ids):
            raise BadInput(f"{self.name}: {len(self.texts)} captions for {len(self.text_ids)} text ids; give one each.")
        if len(self.image_rows) != len(self.text_rows) or len(self.image_rows) == 0:
            raise BadInput(f"{self.name}: no pairs; give at least one (image_id, text_id) pair.")
        for side, ids, rows in (("image", self.image_ids, self.image_rows), ("text", self.text_ids, self.text_rows)):
            if rows.min() < 0 or rows.max() >= len(ids):
                raise BadInput(f"{self.name}: a pair names {side} row {int(rows.max())}; there are {len(ids)} {side}s.")
            lonely = np.flatnonzero(np.bincount(rows, minlength=len(ids)) == 0)
            if len(lonely):
                raise BadInput(
                    f"{self.name}: {len(lonely)} {side}(s) without a positive, first {ids[lonely[0]]!r}; "
                    f"every {side} needs at least one pair: add it or leave the {side} out."
                )
        codes = np.unique(np.asarray(self.image_rows, np.int64) * self.num_texts + np.asarray(self.text_rows, np.int64))
        object.__setattr__(self, "image_rows", codes // self.num_texts)
        object.__setattr__(self, "text_rows", codes % self.num_texts)

    @classmethod
    def from_ids(
        cls,
        image_ids: Sequence[str],
        text_ids: Sequence[str],
        links: Iterable[tuple[str, str]],
        *,
        texts: Sequence[str] = (),
        name: str = "pairs",
    ) -> Pairs:
        """Build from (image id, text id) links. Raises BadInput when a link names an unknown id."""
        images, captions = zip(*links, strict=True) if (links := list(links)) else ((), ())
        return cls.from_columns(image_ids, text_ids, images, captions, texts=texts, name=name)

    @classmethod
    def from_columns(
        cls,
        image_ids: Sequence[str],
        text_ids: Sequence[str],
        images: Any,
        captions: Any,
        *,
        texts: Sequence[str] = (),
        name: str = "pairs",
    ) -> Pairs:
        """The same from two columns, of image ids and of text ids: sequences or pyarrow arrays of strings."""
        ends: list[Rows] = []
        for side, given, column in (("image", image_ids, images), ("text", text_ids, captions)):
            ids, named = Ids(given), Ids(column)
            _check_ids(ids, side, name)
            rows = ids.rows(named)
            if (rows < 0).any():
                unknown = sorted(set(named.take(np.flatnonzero(rows < 0))))
                raise BadInput(
                    f"{name}: {len(unknown)} unknown {side} id(s) in the pairs, first {unknown[0]!r}; "
                    f"every id must be one of the {len(ids)} {side} ids."
                )
            ends.append(rows)
        return cls(Ids(image_ids), Ids(text_ids), ends[0], ends[1], tuple(texts), name)

    def ids(self, side: Side) -> Ids:
        """Ids of one side, by row."""
        return self.image_ids if side == "image" else self.text_ids

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_texts(self) -> int:
        return len(self.text_ids)

    @property
    def num_pairs(self) -> int:
        return len(self.image_rows)

    @cached_property
    def _by_image(self) -> tuple[Rows, Rows]:
        return _csr(self.image_rows, self.text_rows, self.num_images)

    @cached_property
    def _by_text(self) -> tuple[Rows, Rows]:
        return _csr(self.text_rows, self.image_rows, self.num_texts)

    @cached_property
    def _codes(self) -> Rows:
        return self.image_rows * self.num_texts + self.text_rows

    def positives(self, side: Side) -> tuple[Rows, Rows]:
        """Positives of every item of `side` as (offsets, rows): row r has `rows[offsets[r]:offsets[r + 1]]`."""
        return self._by_image if side == "image" else self._by_text

    def positives_of(self, direction: Direction | Within) -> tuple[Rows, Rows]:
        """(offsets, rows) as `positives`, of what a search in a direction must not call a negative: for i2i (t2t), the
        images (texts) that share a text (an image) with the anchor, the anchor itself among them."""
        anchors, gallery = sides(direction)
        return self.positives(anchors) if anchors != gallery else self._shared(anchors)

    def _shared(self, side: Side) -> tuple[Rows, Rows]:
        offsets, others = self.positives(side)
        back_offsets, back = self.positives("text" if side == "image" else "image")
        counts = np.diff(back_offsets)[others]
        starts = np.repeat(back_offsets[others] - (np.cumsum(counts) - counts), counts)
        anchors = np.repeat(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), counts)
        codes = np.unique(anchors * np.int64(len(self.ids(side))) + back[starts + np.arange(len(starts))])
        return _csr(codes // len(self.ids(side)), codes % len(self.ids(side)), len(self.ids(side)))

    def order(self, side: Side) -> Rows:
        """Rows of one side sorted by id (see `Ids.order`)."""
        return self.ids(side).order

    def places(self, side: Side) -> Rows:
        """Where each row of a side stands in that order."""
        return self.ids(side).places

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, the links and the captions, in row order."""
        return _digest((self.image_ids, self.text_ids, self.texts), np.stack([self.image_rows, self.text_rows]))

    @cached_property
    def unordered_fingerprint(self) -> str:
        """SHA-256 of the same, equal for every order of the rows: a negative table, which names ids, records it."""
        images, texts = self.image_ids.order, self.text_ids.order
        places = np.stack([self.image_ids.places[self.image_rows], self.text_ids.places[self.text_rows]])
        strings: list[Sequence[str]] = [self.image_ids.take(images), self.text_ids.take(texts)]
        strings.append(tuple(self.texts[row] for row in texts) if self.texts else ())
        return _digest(strings, places[:, np.lexsort(places[::-1])])

    def belong(self, image_rows: Rows, text_rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether image a and text b are a pair, for every a in `image_rows` and b in `text_rows`: (a, b) booleans."""
        return self.linked(image_rows[:, None], text_rows[None, :])

    def linked(self, image_rows: Rows, text_rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether image and text are a pair, element by element; the two broadcast."""
        wanted = image_rows * self.num_texts + text_rows
        place = np.searchsorted(self._codes, wanted)
        return np.asarray(self._codes[np.minimum(place, len(self._codes) - 1)] == wanted)


def _check_ids(ids: Ids, side: str, name: str) -> None:
    if not len(ids):
        raise BadInput(f"{name}: there is no {side}; an empty set cannot be mined or trained on.")
    twice = ids.repeated()
    if twice is not None:
        raise BadInput(f"{name}: {side} id {twice!r} occurs more than once; ids must be unique.")


def _digest(columns: Sequence[Sequence[str]], links: Rows) -> str:
    digest = hashlib.sha256(b"quintain pairs 1\0")
    for strings in columns:
        digest.update(len(strings).to_bytes(8, "little"))
        for string in strings:
            encoded = string.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    digest.update(links.astype("<i8").tobytes())
    return digest.hexdigest()


def _csr(keys: Rows, values: Rows, size: int) -> tuple[Rows, Rows]:
    order = np.lexsort((values, keys))
    offsets = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys, minlength=size), out=offsets[1:])
    return offsets, values[order]


def commit_pairs(draft: Draft, pairs: Pairs, meta: Mapping[str, Any]) -> Artifact:
    """Write `images.parquet` (image_id), `texts.parquet` (text_id, text) and `pairs.parquet` (image_id, text_id)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, texts = pairs.image_ids.arrow, pairs.text_ids.arrow
    columns = {
        "images": pa.table({"image_id": images}),
        "texts": pa.table({"text_id": texts, "text": pa.array(pairs.texts or [None] * pairs.num_texts, pa.string())}),
        "pairs": pa.table({"image_id": images.take(pairs.image_rows), "text_id": texts.take(pairs.text_rows)}),
    }
    files = {}
    for name, table in columns.items():
        source = draft.scratch()
        pq.write_table(table, source, compression="zstd")
        files[f"{name}.parquet"] = draft.adopt(f"{name}.parquet", source, table.num_rows)
    return draft.commit(files, {**meta, "pairs": pairs.fingerprint})


def open_pairs(artifact: Artifact) -> Pairs:
    """Read what `commit_pairs` wrote. Raises DamagedArtifact."""

    def column(table: str, name: str) -> Any:
        return open_parquet(artifact, f"{table}.parquet").read(columns=[name])[name].combine_chunks()

    texts = column("texts", "text")
    return Pairs.from_columns(
        Ids(column("images", "image_id")),
        Ids(column("texts", "text_id")),
        column("pairs", "image_id"),
        column("pairs", "text_id"),
        texts=() if texts.null_count else texts.to_pylist(),
        name=artifact.where,
    )
