"""What was dropped, and why, as Parquet beside the negative table.

    dropped.parquet    one row per candidate passed over for the negatives, anchors in id order, then by rank
        anchor_id      string
        rank           int32, place among the candidates (0 = nearest)
        negative_id    string
        score          float32
        rule           string, the first rule that dropped it

The bytes depend on the content alone, as those of the table do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.manifest import Artifact, Draft, FileRecord
from miner.artifacts.pairs import Direction, Pairs, Within, sides
from miner.artifacts.parquet import open_parquet

__all__ = ["DROPPED", "DroppedRows", "DroppedTable", "dropped_table", "read_dropped"]

DROPPED = "dropped.parquet"

_GROUP = 1 << 20  # rows per row group, and held in memory
Columns = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class DroppedRows:
    """The table as arrays, (n,) each, in its order: rows of the pairs, ranks from 0 on, scores, and positions in
    `rules`."""

    anchors: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    rule: npt.NDArray[np.int64]
    rules: tuple[str, ...]


def read_dropped(artifact: Artifact, pairs: Pairs, direction: Direction | Within) -> DroppedRows | None:
    """What stands beside a negative table; None where no rule was asked. Raises DamagedArtifact."""
    if DROPPED not in artifact.manifest.files:
        return None
    table = open_parquet(artifact, DROPPED).read()
    anchors, candidates = (
        pairs.ids(side).rows(table[name].combine_chunks())
        for side, name in zip(sides(direction), ("anchor_id", "negative_id"), strict=True)
    )
    rule = table["rule"].combine_chunks().dictionary_encode()
    return DroppedRows(
        anchors,
        candidates,
        table["rank"].to_numpy().astype(np.int64),
        table["score"].to_numpy(),
        np.asarray(rule.indices.to_numpy(zero_copy_only=False), dtype=np.int64),
        tuple(rule.dictionary.to_pylist()),
    )


@contextmanager
def dropped_table(
    draft: Draft, pairs: Pairs, direction: Direction | Within, rules: Sequence[str]
) -> Iterator[DroppedTable]:
    """A table in the making, of which nothing is left behind unless it is finished."""
    import pyarrow.parquet as pq

    source = draft.scratch()
    table = DroppedTable(draft, source, pairs, direction, rules)
    try:
        with pq.ParquetWriter(
            source,
            table.schema,
            compression="zstd",
            use_dictionary=["anchor_id", "negative_id", "rule"],
            use_byte_stream_split=["score"],
            store_schema=False,
            dictionary_pagesize_limit=1 << 30,
            version="2.6",
        ) as table.writer:
            yield table
    finally:
        source.unlink(missing_ok=True)


class DroppedTable:
    def __init__(
        self, draft: Draft, source: Path, pairs: Pairs, direction: Direction | Within, rules: Sequence[str]
    ) -> None:
        import pyarrow as pa

        self.pa, self.draft, self.source = pa, draft, source
        self.writer: Any = None
        self.ids, self.places = [], []
        for side in sides(direction):
            order = pairs.order(side)
            self.ids.append(pairs.ids(side).take(order).arrow)
            place = np.empty(len(order), dtype=np.int64)
            place[order] = np.arange(len(order))
            self.places.append(place)
        self.rules = pa.array(list(rules), pa.string())
        words = pa.dictionary(pa.int32(), pa.string())
        self.schema = pa.schema(
            [
                ("anchor_id", words),
                ("rank", pa.int32()),
                ("negative_id", words),
                ("score", pa.float32()),
                ("rule", words),
            ]
        )
        self.num_rows = 0
        self._held: list[Columns] = []

    def add(self, *columns: npt.NDArray[Any]) -> None:
        """Rows of the anchors, ranks, rows of the candidates, scores, numbers of the rules: (n,) each, in order."""
        self._held.append(columns)
        while sum(len(piece[0]) for piece in self._held) >= _GROUP:
            columns = self._joined()
            self._write(tuple(column[:_GROUP] for column in columns))
            self._held = [tuple(column[_GROUP:] for column in columns)]

    def finish(self) -> FileRecord:
        """Put it in place, after the last row."""
        if self._held and len(columns := self._joined()) and len(columns[0]):
            self._write(columns)
        self.writer.close()
        return self.draft.adopt(DROPPED, self.source, self.num_rows)

    def _joined(self) -> Columns:
        return tuple(np.concatenate(column) for column in zip(*self._held, strict=True))

    def _write(self, columns: Columns) -> None:
        anchors, ranks, candidates, scores, rules = columns
        self.num_rows += len(ranks)
        table = self.pa.Table.from_arrays(
            [
                self._words(self.places[0][anchors], self.ids[0]),
                self.pa.array(ranks, self.pa.int32()),
                self._words(self.places[1][candidates], self.ids[1]),
                self.pa.array(scores, self.pa.float32()),
                self._words(rules.astype(np.int64), self.rules),
            ],
            schema=self.schema,
        )
        self.writer.write_table(table, row_group_size=len(ranks))

    def _words(self, places: npt.NDArray[np.int64], ids: Any) -> Any:
        used, codes = np.unique(places, return_inverse=True)
        return self.pa.DictionaryArray.from_arrays(codes.astype(np.int32), ids.take(self.pa.array(used)))
