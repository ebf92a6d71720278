"""JSON lines for Tevatron's training of retrievers, with the passages inside or in a corpus beside.

    layout=passages    query_id, query, positive_passages, negative_passages: lists of {"docid", "text"}
    layout=documents   query_id, query_text or query_image, positive_document_ids, negative_document_ids; the documents
                       are in NAME_corpus.jsonl beside NAME.jsonl: docid, text or image

One line per anchor with all its positives: an epoch takes one of them in turn, and `train_group_size` - 1 negatives,
some of them twice where there are fewer; an anchor without one would stop it and is left out. There is no title: where
a passage has one, even an empty one, it is put before the text. Tevatron calls `passages` the legacy format; it holds
text alone, while `documents` holds paths of pictures too.

Source: texttron/tevatron, src/tevatron/retriever/dataset.py (both); tevatron 0.1.0, tevatron/datasets/preprocessor.py
(`passages`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miner.export._contents import Contents
from miner.export._json import write_lines
from miner.export._mined import Mined, Needs

__all__ = ["SUFFIX", "Config", "files", "read_with", "write"]

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Config:
    """`layout` says where the passages are."""

    layout: Literal["passages", "documents"] = "passages"


def files(config: Config, out: Path) -> tuple[Path, ...]:
    return (out,) if config.layout == "passages" else (out.with_name(f"{out.stem}_corpus.jsonl"), out)


def write(config: Config, mined: Mined, drafts: Mapping[Path, Path]) -> int:
    *corpus, lines = drafts.values()
    if config.layout == "passages":
        mined.warn_of_paths("Tevatron's legacy format", mined.anchors, mined.gallery)
        return write_lines(lines, _with_passages(mined))
    write_lines(corpus[0], _corpus(mined))
    return write_lines(lines, _with_ids(mined))


def read_with(config: Config, out: Path) -> str:
    said = f"--dataset_name json --dataset_path {out}"
    return said if config.layout == "passages" else f"{said} --corpus_name json --corpus_path {files(config, out)[0]}"


def _with_passages(mined: Mined) -> Iterator[dict[str, Any]]:
    def passages(rows: list[int]) -> list[dict[str, str]]:
        return [{"docid": mined.gallery_ids[row], "text": mined.gallery.values[row]} for row in rows]

    for anchor in mined.each(Needs()):
        yield {
            "query_id": mined.anchor_ids[anchor.row],
            "query": mined.anchors.values[anchor.row],
            "positive_passages": passages(anchor.positives),
            "negative_passages": passages(anchor.negatives),
        }


def _with_ids(mined: Mined) -> Iterator[dict[str, Any]]:
    query, ids = f"query_{_modality(mined.anchors)}", mined.gallery_ids
    for anchor in mined.each(Needs()):
        yield {
            "query_id": mined.anchor_ids[anchor.row],
            query: mined.anchors.values[anchor.row],
            "positive_document_ids": [ids[row] for row in anchor.positives],
            "negative_document_ids": [ids[row] for row in anchor.negatives],
        }


def _corpus(mined: Mined) -> Iterator[dict[str, str]]:
    for docid, value in zip(mined.gallery_ids, mined.gallery.values, strict=True):
        yield {"docid": docid, _modality(mined.gallery): value}


def _modality(contents: Contents) -> str:
    return "image" if contents.kind == "path" else "text"
