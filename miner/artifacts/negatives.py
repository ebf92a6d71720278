"""Negative tables: for every anchor of one direction its k hardest negatives, as Parquet anybody can read.

    negatives.parquet    one row per negative, anchors in id order, then by rank (0 = hardest)
        anchor_id        string
        rank             int16, or int32 where k needs it
        negative_id      string
        score            float32, similarity of anchor and negative
        lowest_positive  float32, the lowest similarity of the anchor to one of its own positives; null in a table of
                         i2i or t2t where it has none
    shortfalls.parquet   one row per anchor with fewer than k: anchor_id, found, wanted, lowest_positive, reason
    dropped.parquet      where rules chose: what they passed over, see `dropped`

Provenance (direction, k, pairs, and what the caller adds: round, metric, index, checkpoint) is JSON under the key
`quintain` of the Parquet footer, and in the manifest. The bytes depend on the content alone: not on the blocks it was
fed in, nor on the order in which somebody stores vectors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from miner.artifacts.dropped import read_dropped
from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.manifest import Artifact, Draft, FileRecord, canonical_json, open_artifact
from miner.artifacts.pairs import Direction, Pairs, Within, sides
from miner.artifacts.parquet import open_parquet
from miner.artifacts.place import Place

__all__ = ["NEGATIVES", "NegativeBlock", "NegativeTable", "write_negatives"]

NEGATIVES = "negatives"
CSR: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
FOOTER_KEY = b"quintain"
# Anchors per row group: fixed, so that the same table is the same file however it was cut into blocks.
_GROUP = 32768
_IDS = ["anchor_id", "negative_id"]


@dataclass(frozen=True)
class NegativeBlock:
    """Negatives of some anchors of one direction, the anchors in id order.

    `anchor_rows` (a,) and `negatives` (a, k), hardest first and padded with -1, are rows of the Pairs; `scores` (a, k)
    is nan where `negatives` is -1; `lowest_positive` (a,). `reasons` says by anchor row why one has fewer than k.
    """

    anchor_rows: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    lowest_positive: npt.NDArray[np.float32]
    reasons: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.anchor_rows)

    def cut(self, start: int, stop: int) -> NegativeBlock:
        """The anchors from `start` to `stop`."""
        at = slice(start, stop)
        return NegativeBlock(
            self.anchor_rows[at], self.negatives[at], self.scores[at], self.lowest_positive[at], self.reasons
        )

    @staticmethod
    def join(blocks: list[NegativeBlock]) -> NegativeBlock:
        """Blocks one after the other."""
        if len(blocks) == 1:
            return blocks[0]
        return NegativeBlock(
            np.concatenate([block.anchor_rows for block in blocks]),
            np.concatenate([block.negatives for block in blocks]),
            np.concatenate([block.scores for block in blocks]),
            np.concatenate([block.lowest_positive for block in blocks]),
            {row: reason for block in blocks for row, reason in block.reasons.items()},
        )


def write_negatives(
    draft: Draft,
    blocks: Iterable[NegativeBlock],
    pairs: Pairs,
    direction: Direction | Within,
    k: int,
    provenance: Mapping[str, Any],
    beside: Callable[[], tuple[Mapping[str, FileRecord], Mapping[str, Any]]] = lambda: ({}, {}),
) -> Artifact:
    """Write and commit the table of one direction; memory is bounded by a row group, not by the table.

    `blocks` cover every anchor once, in id order. After the last, `beside()` gives other files in place, by name, and
    what else to say in `meta`. Raises BadInput when an anchor is missing, or has fewer than k negatives without a
    reason.
    """
    import pyarrow.parquet as pq

    full = {**provenance, "direction": direction, "k": k, "pairs": pairs.unordered_fingerprint}
    layout = _Layout(pairs, direction, k)
    source = draft.scratch()
    try:
        with pq.ParquetWriter(
            source,
            layout.schema,
            compression="zstd",
            use_dictionary=[*_IDS, "rank", "lowest_positive"],
            use_byte_stream_split=["score"],
            store_schema=False,
            dictionary_pagesize_limit=1 << 30,
            version="2.6",
        ) as writer:
            writer.add_key_value_metadata({FOOTER_KEY.decode(): canonical_json(full).decode()})
            # One row group per table: its dictionaries hold the ids of that group, whatever their size.
            for block in _regroup(blocks):
                table = layout.table(block)
                if table.num_rows:
                    writer.write_table(table, row_group_size=table.num_rows)
        layout.finish()
        files = {"negatives.parquet": draft.adopt("negatives.parquet", source, layout.num_rows)}
    finally:
        source.unlink(missing_ok=True)
    shortfalls = layout.shortfall_table()
    buffer = io.BytesIO()
    pq.write_table(shortfalls, buffer, compression="zstd", store_schema=False)
    files["shortfalls.parquet"] = draft.add("shortfalls.parquet", buffer.getvalue(), shortfalls.num_rows)
    more, said = beside()
    return draft.commit({**files, **more}, {**layout.summary(), **said, "provenance": full})


class _Layout:
    """Turns blocks into Parquet row groups, and keeps count."""

    def __init__(self, pairs: Pairs, direction: Direction | Within, k: int) -> None:
        import pyarrow as pa

        anchors, gallery = sides(direction)
        self.pa, self.k, self.anchor_side = pa, k, anchors
        self.order = pairs.order(anchors)
        self.anchor_ids = pairs.ids(anchors).take(self.order).arrow
        self.gallery_ids = pairs.ids(gallery).take(pairs.order(gallery)).arrow
        self.place = pairs.places(gallery)
        words = pa.dictionary(pa.int32(), pa.string())
        rank = pa.int16() if k <= 2**15 else pa.int32()
        self.schema = pa.schema(
            [
                ("anchor_id", words),
                ("rank", rank),
                ("negative_id", words),
                ("score", pa.float32()),
                ("lowest_positive", pa.float32()),
            ]
        )
        self.done = self.num_rows = self.known = self.above = self.anchors_known = self.anchors_above = 0
        self.hardness = 0.0
        self.short: list[tuple[str, int, int, float | None, str]] = []

    def table(self, block: NegativeBlock) -> Any:
        """One row group."""
        pa, start = self.pa, self.done
        self.done += len(block)
        if not np.array_equal(block.anchor_rows, self.order[start : self.done]):
            raise BadInput(
                f"negatives: the blocks must cover every {self.anchor_side} once, in id order; "
                f"they do not from anchor {start} to {self.done}."
            )
        valid = block.negatives >= 0
        found = valid.sum(1)
        if block.negatives.shape != (len(block), self.k) or (valid[:, 1:] & ~valid[:, :-1]).any():
            raise BadInput(
                f"negatives: a block has shape {block.negatives.shape} or a hole in a row; "
                f"give (anchors, {self.k}) rows, hardest first, with -1 at the end only."
            )
        self._count(block, valid, found)
        place = self.place[block.negatives[valid]]
        used = np.zeros(len(self.place), dtype=bool)
        used[place] = True
        rows = np.flatnonzero(used)
        code = np.empty(len(self.place), dtype=np.int32)
        code[rows] = np.arange(len(rows), dtype=np.int32)
        columns = [
            pa.DictionaryArray.from_arrays(
                np.repeat(np.arange(len(block), dtype=np.int32), found), self.anchor_ids.slice(start, len(block))
            ),
            pa.array(np.broadcast_to(np.arange(self.k), valid.shape)[valid], self.schema.field("rank").type),
            pa.DictionaryArray.from_arrays(code[place], self.gallery_ids.take(pa.array(rows))),
            pa.array(block.scores[valid], pa.float32()),
            pa.array(np.repeat(block.lowest_positive, found), pa.float32(), from_pandas=True),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _count(self, block: NegativeBlock, valid: npt.NDArray[np.bool_], found: npt.NDArray[np.int64]) -> None:
        hardness = np.subtract(block.scores, block.lowest_positive[:, None], dtype=np.float64)
        known = valid & ~np.isnan(hardness)
        self.num_rows += int(found.sum())
        self.known += int(known.sum())
        self.hardness += float(hardness[known].sum())
        self.above += int((hardness[valid] > 0).sum())
        self.anchors_known += int((~np.isnan(block.lowest_positive)).sum())
        self.anchors_above += int(((hardness > 0) & valid).any(1).sum())
        for at in np.flatnonzero(found < self.k):
            row = int(block.anchor_rows[at])
            name = self.anchor_ids[self.done - len(block) + int(at)].as_py()
            if row not in block.reasons:
                raise BadInput(f"negatives: {self.anchor_side} {name!r} has {found[at]} of {self.k} ; say why.")
            lowest = None if np.isnan(block.lowest_positive[at]) else float(block.lowest_positive[at])
            self.short.append((name, int(found[at]), self.k, lowest, block.reasons[row]))

    def finish(self) -> None:
        if self.done != len(self.order):
            raise BadInput(f"negatives: {self.done} of {len(self.order)} anchors were given; give every one once.")

    def shortfall_table(self) -> Any:
        pa = self.pa
        columns: list[Any] = list(zip(*self.short, strict=True)) or [()] * 5
        types = [pa.string(), pa.int32(), pa.int32(), pa.float32(), pa.string()]
        names = ["anchor_id", "found", "wanted", "lowest_positive", "reason"]
        return pa.table({n: pa.array(column, t) for n, column, t in zip(names, columns, types, strict=True)})

    def summary(self) -> dict[str, Any]:
        """What a person wants to know of a table; the shares are of negatives and of anchors that have a
        positive."""
        rows = max(self.known, 1)
        return {
            "anchors": self.done,
            "k": self.k,
            "negatives": self.num_rows,
            "shortfalls": len(self.short),
            "hardness_mean": round(self.hardness / rows, 6),
            "share_above_lowest_positive": round(self.above / rows, 6),
            "share_anchors_above_lowest_positive": round(self.anchors_above / max(self.anchors_known, 1), 6),
        }


def _regroup(blocks: Iterable[NegativeBlock]) -> Iterator[NegativeBlock]:
    """The same anchors in blocks of `_GROUP`; the last may be shorter."""
    held: list[NegativeBlock] = []
    for block in blocks:
        while len(block):
            part = block.cut(0, _GROUP - sum(map(len, held)))
            block = block.cut(len(part), len(block))
            held.append(part)
            if sum(map(len, held)) == _GROUP:
                yield NegativeBlock.join(held)
                held = []
    if held:
        yield NegativeBlock.join(held)


def _nothing() -> None:
    """What a table that was not read from files has of rules."""


@dataclass(frozen=True)
class NegativeTable:
    """A table as arrays, indexed by row of the Pairs it was opened with.

    `negatives` (anchors, k) int32 are rows of the other side, -1 beyond `num_negatives` (anchors,); `scores`
    (anchors, k) is nan there; `lowest_positive` (anchors,). `provenance` is what the footer says; `fingerprint` the
    artifact's.
    """

    direction: Direction
    k: int
    negatives: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    lowest_positive: npt.NDArray[np.float32]
    num_negatives: npt.NDArray[np.int32]
    provenance: dict[str, Any]
    fingerprint: str
    _read_dropped: Callable[[], CSR | None] = _nothing

    def dropped(self) -> CSR | None:
        """What rules dropped, by anchor row as (offsets, rows of the other side); None where there was no rule. Read
        anew each time. Raises DamagedArtifact."""
        return self._read_dropped()

    @classmethod
    def open(cls, source: Artifact | Place | Path, pairs: Pairs) -> NegativeTable:
        """Open a committed table; the bytes that are hashed are the bytes that are parsed.

        Raises BadInput when the table was mined for other pairs, DamagedArtifact when it is not as committed.
        """
        import pyarrow.compute as pc

        artifact = source if isinstance(source, Artifact) else open_artifact(source, NEGATIVES)
        if artifact.manifest.kind != NEGATIVES:
            raise BadInput(f"{artifact.where}: this is a {artifact.manifest.kind!r} artifact, not a negative table.")
        provenance = artifact.manifest.meta["provenance"]
        if provenance["pairs"] != pairs.unordered_fingerprint:
            raise BadInput(
                f"{artifact.where}: this table was mined for other pairs (fingerprint {provenance['pairs'][:12]}) than "
                f"{pairs.name} (fingerprint {pairs.unordered_fingerprint[:12]}); mine again for these."
            )
        direction, k = provenance["direction"], int(provenance["k"])
        anchors, gallery = sides(direction)
        num_anchors = len(pairs.ids(anchors))
        anchor_ids, gallery_ids = pairs.ids(anchors).arrow, pairs.ids(gallery).arrow
        negatives = np.full((num_anchors, k), -1, dtype=np.int32)
        scores = np.full((num_anchors, k), np.nan, dtype=np.float32)
        lowest = np.full(num_anchors, np.nan, dtype=np.float32)

        file = open_parquet(artifact, "negatives.parquet", read_dictionary=_IDS)
        if json.loads(file.metadata.metadata[FOOTER_KEY]) != provenance:
            raise DamagedArtifact(f"{artifact.where}: the table's footer and its manifest tell different provenance.")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).combine_chunks()
            rows = []
            for name, ids in (("anchor_id", anchor_ids), ("negative_id", gallery_ids)):
                column = table[name].chunk(0)
                known = pc.index_in(column.dictionary, value_set=ids)
                rows.append(known.to_numpy(zero_copy_only=False).astype(np.int64)[column.indices.to_numpy()])
            cells = rows[0] * k + table["rank"].to_numpy()
            negatives.reshape(-1)[cells] = rows[1]
            scores.reshape(-1)[cells] = table["score"].to_numpy()
            lowest[rows[0]] = table["lowest_positive"].to_numpy()

        short = open_parquet(artifact, "shortfalls.parquet").read()
        lowest[pc.index_in(short["anchor_id"], value_set=anchor_ids).to_numpy()] = short["lowest_positive"].to_numpy()
        found = (negatives >= 0).sum(1, dtype=np.int32)
        fingerprint, read = artifact.manifest.fingerprint, partial(_dropped, artifact, pairs, direction)
        return cls(direction, k, negatives, scores, lowest, found, provenance, fingerprint, read)


def _dropped(artifact: Artifact, pairs: Pairs, direction: Direction) -> CSR | None:
    found = read_dropped(artifact, pairs, direction)
    if found is None:
        return None
    counts = np.bincount(found.anchors, minlength=len(pairs.ids(sides(direction)[0])))
    order = np.argsort(found.anchors, kind="stable")
    return np.concatenate([[0], np.cumsum(counts)]), found.candidates[order]
