"""The dataset as every stage sees it: images, texts, and which belong together (many-to-many)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import Artifact, Draft

__all__ = ["PAIRS", "Direction", "Pairs", "Side", "commit_pairs", "id_order", "open_pairs", "sides"]

PAIRS = "pairs"
Side = Literal["image", "text"]
Direction = Literal["i2t", "t2i"]
Rows = npt.NDArray[np.int64]


def sides(direction: Direction) -> tuple[Side, Side]:
    """(anchor side, gallery side) of a direction: i2t has images for anchors and searches texts."""
    return ("image", "text") if direction == "i2t" else ("text", "image")


def id_order(ids: Sequence[str]) -> Rows:
    """Rows sorted by id: as numbers when every id is a plain decimal integer, else by code point.

    This order breaks ties between equal scores and sorts the anchors of a negative table, so that neither depends
    on the order in which somebody happened to store vectors.
    """
    if all(i.isascii() and i.isdigit() for i in ids):
        return np.array(sorted(range(len(ids)), key=lambda row: (int(ids[row]), ids[row])), dtype=np.int64)
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


@dataclass(frozen=True)
class Pairs:
    """Images, texts and the pairs between them.

    `image_ids` and `text_ids` are unique strings; a *row* is a position in one of them. `image_rows[p]` and
    `text_rows[p]` are the two ends of pair p, each pair once, sorted. `texts` are the captions themselves, by text
    row; empty for somebody who brings vectors only.

    Raises BadInput for an empty set, a duplicate id, a row outside its side, or an item without a positive.
    """

    image_ids: tuple[str, ...]
    text_ids: tuple[str, ...]
    image_rows: Rows
    text_rows: Rows
    texts: tuple[str, ...] = ()
    name: str = field(default="pairs", compare=False)

    def __post_init__(self) -> None:
        _check_ids(self.image_ids, "image", self.name)
        _check_ids(self.text_ids, "text", self.name)
        if self.texts and len(self.texts) != len(self.text_ids):
            raise BadInput(f"{self.name}: {len(self.texts)} captions for {len(self.text_ids)} text ids; give one each.")
        if len(self.image_rows) != len(self.text_rows) or len(self.image_rows) == 0:
            raise BadInput(f"{self.name}: no pairs; give at least one (image_id, text_id) pair.")
        links = np.unique(np.stack([self.image_rows, self.text_rows], 1).astype(np.int64), axis=0)
        object.__setattr__(self, "image_rows", np.ascontiguousarray(links[:, 0]))
        object.__setattr__(self, "text_rows", np.ascontiguousarray(links[:, 1]))
        for side, ids, rows in (("image", self.image_ids, self.image_rows), ("text", self.text_ids, self.text_rows)):
            if rows.min() < 0 or rows.max() >= len(ids):
                raise BadInput(f"{self.name}: a pair names {side} row {int(rows.max())}; there are {len(ids)} {side}s.")
            lonely = np.setdiff1d(np.arange(len(ids)), rows)
            if len(lonely):
                raise BadInput(
                    f"{self.name}: {len(lonely)} {side}(s) without a positive, first {ids[lonely[0]]!r}; "
                    f"every {side} needs at least one pair: add it or leave the {side} out."
                )

    @classmethod
    def from_ids(
        cls,
        image_ids: Sequence[str],
        text_ids: Sequence[str],
        links: Sequence[tuple[str, str]],
        *,
        texts: Sequence[str] = (),
        name: str = "pairs",
    ) -> Pairs:
        """Build from (image id, text id) links. Raises BadInput when a link names an unknown id."""
        _check_ids(tuple(image_ids), "image", name)
        _check_ids(tuple(text_ids), "text", name)
        ends: list[Rows] = []
        for column, (side, ids) in enumerate((("image", image_ids), ("text", text_ids))):
            lookup = {i: row for row, i in enumerate(ids)}
            unknown = sorted({link[column] for link in links if link[column] not in lookup})
            if unknown:
                raise BadInput(
                    f"{name}: {len(unknown)} unknown {side} id(s) in the pairs, first {unknown[0]!r}; "
                    f"every id must be one of the {len(lookup)} {side} ids."
                )
            ends.append(np.array([lookup[link[column]] for link in links], dtype=np.int64))
        return cls(tuple(image_ids), tuple(text_ids), ends[0], ends[1], tuple(texts), name)

    def ids(self, side: Side) -> tuple[str, ...]:
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

    @cached_property
    def _orders(self) -> tuple[Rows, Rows]:
        return id_order(self.image_ids), id_order(self.text_ids)

    def order(self, side: Side) -> Rows:
        """Rows of one side sorted by id (see `id_order`)."""
        return self._orders[0 if side == "image" else 1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, the links and the captions, in row order."""
        return _digest((self.image_ids, self.text_ids, self.texts), np.stack([self.image_rows, self.text_rows]))

    @cached_property
    def unordered_fingerprint(self) -> str:
        """SHA-256 of the same, equal for every order of the rows: a negative table, which names ids, records it."""
        images, texts = self._orders
        places = np.stack([np.argsort(images)[self.image_rows], np.argsort(texts)[self.text_rows]])
        strings = [tuple(self.image_ids[row] for row in images), tuple(self.text_ids[row] for row in texts)]
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


def _check_ids(ids: tuple[str, ...], side: str, name: str) -> None:
    if not ids:
        raise BadInput(f"{name}: there is no {side}; an empty set cannot be mined or trained on.")
    if len(set(ids)) != len(ids):
        twice = next(i for i, times in Counter(ids).items() if times > 1)
        raise BadInput(f"{name}: {side} id {twice!r} occurs more than once; ids must be unique.")


def _digest(columns: Sequence[tuple[str, ...]], links: Rows) -> str:
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

    images, texts = pa.array(pairs.image_ids, pa.string()), pa.array(pairs.text_ids, pa.string())
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(table: str, name: str) -> list[Any]:
        data = artifact.read(f"{table}.parquet")
        return list(pq.read_table(pa.BufferReader(data), columns=[name])[name].to_pylist())

    texts = column("texts", "text")
    links = list(zip(column("pairs", "image_id"), column("pairs", "text_id"), strict=True))
    return Pairs.from_ids(
        column("images", "image_id"),
        column("texts", "text_id"),
        links,
        texts=() if None in texts else texts,
        name=artifact.where,
    )
