"""JSON lines for FlagEmbedding's fine-tuning of embedders and rerankers.

    query                    text of the anchor
    pos, neg                 texts of all its positives, and of its negatives, hardest first
    pos_scores, neg_scores   with `scores`: their scores, for knowledge distillation

One line per anchor: every epoch draws one of `pos` at random and `train_group_size` - 1 of `neg`, some of them twice
where there are fewer. It divides by the number of negatives, so an anchor without one is left out. Its loaders take
files that end in .json or .jsonl, and drop the scores unless `knowledge_distillation` is set, which needs all of them.

Source: FlagEmbedding 1.4.2, FlagEmbedding/abc/finetune/embedder/AbsDataset.py and .../reranker/AbsDataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.export._json import write_lines
from miner.export._mined import Mined, Needs

__all__ = ["SUFFIX", "Config", "files", "read_with", "write"]

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Config:
    """`scores` adds those of positives and negatives. A table holds the score of an anchor's only positive, and of
    several the lowest alone, so anchors with several positives are then left out."""

    scores: bool = False


def files(config: Config, out: Path) -> tuple[Path, ...]:
    return (out,)


def write(config: Config, mined: Mined, drafts: Mapping[Path, Path]) -> int:
    mined.warn_of_paths("FlagEmbedding", mined.anchors, mined.gallery)
    (lines,) = drafts.values()
    return write_lines(lines, _records(config, mined))


def read_with(config: Config, out: Path) -> str:
    return f"--train_data {out}" + (" --knowledge_distillation True" if config.scores else "")


def _records(config: Config, mined: Mined) -> Iterator[dict[str, Any]]:
    for anchor in mined.each(Needs(positive_scores=config.scores)):
        record: dict[str, Any] = {
            "query": mined.anchors.values[anchor.row],
            "pos": mined.gallery.of(anchor.positives),
            "neg": mined.gallery.of(anchor.negatives),
        }
        if config.scores:
            record |= {"pos_scores": [anchor.lowest_positive], "neg_scores": anchor.scores}
        yield record
