"""Parquet in the columns that sentence-transformers trains on, as its `mine_hard_negatives` gives them.

    triplet        anchor, positive, negative                 a row per positive and negative
    n-tuple        anchor, positive, negative_1..negative_N   a row per positive; all as long, so anchors with fewer
                                                              than N negatives are left out
    labeled-pair   anchor, document, label                    a row per positive (1) and per negative (0)
    labeled-list   anchor, documents, labels                  a row per anchor: all positives, then all negatives

With `scores` a last column `scores` has those of the row's documents (triplet, n-tuple), or `score` and `scores` stand
in place of `label` and `labels`. The order of columns counts for sentence-transformers, not their names; only these
four are never inputs.

A column of ids ends in _id (_ids): anchor_id, positive_id, negative_1_id, document_ids. It would be trained on as text,
with a warning; `sentence_transformers.util.resolve_ids` replaces ids by what a data set of yours says. A path is a
picture to a model that takes pictures, when it ends as one and exists where training runs.

`mine_hard_negatives` makes one labeled-list per positive; here a listwise loss sees all positives of an anchor at once.

Source: sentence-transformers 6.2.0, sentence_transformers/util/hard_negatives.py, util/dataset.py,
base/data_collator.py and base/modality.py; 5.2.0 has the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from miner.export._contents import Contents
from miner.export._mined import Mined, Needs
from miner.export._sampling import Drawn

__all__ = ["SUFFIX", "Config", "files", "read_with", "write"]

SUFFIX = ".parquet"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    """`layout` says what a row is. `scores` adds the similarities that were mined with; a table holds the score of an
    anchor's only positive, and of several the lowest alone, so anchors with several positives are then left out."""

    layout: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet"
    scores: bool = False


def files(config: Config, out: Path) -> tuple[Path, ...]:
    return (out,)


def write(config: Config, mined: Mined, drafts: Mapping[Path, Path]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (out,) = drafts.values()
    needs = Needs(mined.num_negatives if config.layout == "n-tuple" else 1, config.scores)
    columns = {"triplet": _triplet, "n-tuple": _n_tuple, "labeled-pair": _labeled_pair, "labeled-list": _labeled_list}
    rows, writer = 0, None
    try:
        for block in mined.blocks(needs):
            table = pa.table(columns[config.layout](mined, block, config.scores))
            # A table's own dictionaries, whatever their size, are those of its row group.
            writer = writer or pq.ParquetWriter(
                out,
                table.schema,
                compression="zstd",
                store_schema=False,
                dictionary_pagesize_limit=1 << 30,
            )
            writer.write_table(table, row_group_size=len(table))
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows


def read_with(config: Config, out: Path) -> str:
    return f'datasets.load_dataset("parquet", data_files={str(out)!r}, split="train")'


def _triplet(mined: Mined, block: Drawn, scores: bool) -> dict[str, Any]:
    at, positives = _by_positive(mined, block)
    found = block.negatives[at] >= 0
    each = np.repeat(np.arange(len(at)), found.sum(1))
    columns = {
        **_named("anchor", mined.anchors, block.anchor_rows[at][each]),
        **_named("positive", mined.gallery, positives[each]),
        **_named("negative", mined.gallery, block.negatives[at][found]),
    }
    if scores:
        columns["scores"] = _lists(np.stack([block.lowest_positive[at][each], block.scores[at][found]], 1))
    return columns


def _n_tuple(mined: Mined, block: Drawn, scores: bool) -> dict[str, Any]:
    at, positives = _by_positive(mined, block)
    columns = {
        **_named("anchor", mined.anchors, block.anchor_rows[at]),
        **_named("positive", mined.gallery, positives),
    }
    for rank, negatives in enumerate(block.negatives[at].T):
        columns |= _named(f"negative_{rank + 1}", mined.gallery, negatives)
    if scores:
        columns["scores"] = _lists(np.concatenate([block.lowest_positive[at, None], block.scores[at]], 1))
    return columns


def _labeled_pair(mined: Mined, block: Drawn, scores: bool) -> dict[str, Any]:
    at, documents, labels, similarities = _labeled(mined, block)
    return {
        **_named("anchor", mined.anchors, block.anchor_rows[at]),
        **_named("document", mined.gallery, documents),
        **({"score": similarities} if scores else {"label": labels}),
    }


def _labeled_list(mined: Mined, block: Drawn, scores: bool) -> dict[str, Any]:
    import pyarrow as pa

    at, documents, labels, similarities = _labeled(mined, block)
    ends = np.searchsorted(at, np.arange(len(block) + 1)).astype(np.int32)
    values = pa.array(mined.gallery.of(documents.tolist()), pa.string())
    last, called = (similarities, "scores") if scores else (labels, "labels")
    return {
        **_named("anchor", mined.anchors, block.anchor_rows),
        "document_ids" if mined.gallery.kind == "id" else "documents": pa.ListArray.from_arrays(ends, values),
        called: pa.ListArray.from_arrays(ends, pa.array(last)),
    }


def _by_positive(mined: Mined, block: Drawn) -> tuple[Rows, Rows]:
    """For every positive of every anchor: (place of the anchor in the block, row of the positive)."""
    counts, positives = mined.positives(block.anchor_rows)
    return np.repeat(np.arange(len(block)), counts), positives


def _labeled(mined: Mined, block: Drawn) -> tuple[Rows, Rows, Rows, npt.NDArray[np.float32]]:
    """(place of the anchor in the block, document, label, score), an anchor's positives first; a positive's score is
    right where it is the anchor's only one."""
    owners, positives = _by_positive(mined, block)
    found = block.negatives >= 0
    at = np.concatenate([owners, np.nonzero(found)[0]])
    order = np.argsort(at, kind="stable")
    documents = np.concatenate([positives, block.negatives[found]])
    labels = np.repeat(np.array([1, 0]), [len(positives), int(found.sum())])
    similarities = np.concatenate([block.lowest_positive[owners], block.scores[found]])
    return at[order], documents[order], labels[order], similarities[order]


def _named(name: str, contents: Contents, rows: npt.NDArray[Any]) -> dict[str, Any]:
    """One column of strings; each string is held once."""
    import pyarrow as pa

    used, codes = np.unique(rows, return_inverse=True)
    words = pa.array(contents.of(used.tolist()), pa.string())
    column = pa.DictionaryArray.from_arrays(codes.astype(np.int32), words)
    return {f"{name}_id" if contents.kind == "id" else name: column}


def _lists(values: npt.NDArray[np.float32]) -> Any:
    """(rows, n) as one list per row."""
    import pyarrow as pa

    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(ends, pa.array(values.reshape(-1)))
