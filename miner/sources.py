"""What a calibration goes through: candidates or a table of negatives, and the scores of the anchors' positives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from miner.artifacts.candidates import CANDIDATES, Candidates
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import MANIFEST, find_artifact
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Within, sides
from miner.artifacts.store import LocalStore
from miner.audit_against import direction_of
from miner.calibration import Positives, Source
from miner.folder import Folder
from miner.pair_scores import PairScores
from miner.rows import DIRECTIONS, Lookup, Rows, open_rows

__all__ = ["positives", "sources"]


def sources(path: Path, opened: Folder, direction: str | None) -> list[Source]:
    """What there is at a path in the direction asked for, "both" i2t and t2i, or None any. Raises BadInput,
    DamagedArtifact."""
    wanted = {None: DIRECTIONS, "both": DIRECTIONS[:2]}.get(direction, (direction,))
    alone = direction if direction in DIRECTIONS else None
    if not path.is_dir() or (path / MANIFEST).exists():
        found = [_source(path, opened, alone)]
    else:
        there = [name for name in DIRECTIONS if (path / name / MANIFEST).exists()]
        if not there:
            raise BadInput(
                f"{path}: neither candidates nor a table here, nor in {'/, '.join(DIRECTIONS)}/ ({MANIFEST} is "
                "missing); give the folder that a search wrote to."
            )
        found = [_source(path / name, opened, None) for name in there if name in wanted or len(there) == 1]
    chosen = [source for source in found if source.direction in wanted]
    if not chosen:
        raise BadInput(f"{path}: holds {found[0].direction} alone, but --direction {direction} was asked for.")
    return chosen


def positives(source: Source, opened: Folder) -> tuple[Any, Positives | None]:
    """(lowest positives by anchor row, nan for who has none; all of them, where they are known): from the vectors,
    unless the scores are a model's own."""
    if source.metric in ("ip", "cosine"):
        known = Positives(*PairScores(opened, source.metric).of_positives(source.direction))
        return known.lowest(), known
    lowest = np.full(len(opened.pairs.ids(sides(source.direction)[0])), np.nan, dtype=np.float32)
    for block in source.blocks():
        lowest[block.anchor_rows] = block.lowest_positive
    return lowest, None


def _source(path: Path, opened: Folder, asked: str | None) -> Source:
    artifact = find_artifact(LocalStore(path), ".") if path.is_dir() else None
    if artifact is not None and artifact.manifest.kind == CANDIDATES:
        candidates = Candidates.open(artifact, opened.pairs)
        metric = str(candidates.provenance.get("metric", "ip"))
        return Source(str(path), candidates.direction, candidates.num_candidates, metric, candidates.blocks)
    rows = open_rows(path)
    way = _known(direction_of(rows, asked if rows.direction is None else None, opened.pairs))
    width = rows.k()
    if width < 1:
        raise BadInput(f"{path}: no candidate at all, so there is nothing to calibrate; search first.")
    if width > len(opened.pairs.ids(sides(way)[1])):
        raise BadInput(f"{path}: a rank of {width - 1} is beyond the gallery; `miner check` shows where.")
    metric = str(rows.provenance.get("metric", "ip"))
    notes = ["the negatives of a table stand for candidates: what is deeper was not kept"]
    if rules := rows.provenance.get("filter", {}).get("rules"):
        named = ", ".join(str(rule.get("rule")) for rule in rules)
        notes.append(f"what the rules of this table dropped ({named}) is not among them")
    return Source(str(path), way, width, metric, lambda: _dense(rows, opened, way, width), tuple(notes))


def _known(direction: str | None) -> Direction | Within:
    known: dict[str | None, Direction | Within] = {"i2t": "i2t", "t2i": "t2i", "i2i": "i2i", "t2t": "t2t"}
    return known[direction]


def _dense(rows: Rows, opened: Folder, direction: Direction | Within, width: int) -> Iterator[NegativeBlock]:
    """The rows of a table as blocks (anchors, width). Raises BadInput for what does not fit the pairs."""
    anchors, gallery = (Lookup(opened.pairs.ids(side)) for side in sides(direction))
    times = np.zeros(anchors.num_known, dtype=np.int64)
    for block in rows.blocks(anchors, gallery):
        strange = (block.anchors < 0).any() or (block.negatives < 0).any()
        if strange or len(anchors) > anchors.num_known or len(gallery) > gallery.num_known:
            raise BadInput(
                f"{rows.where}: it has ids that {opened.pairs.name} does not know; `miner check` shows which."
            )
        if (block.ranks != block.places).any() or block.counts.max() > width:
            raise BadInput(f"{rows.where}: ranks are not 0, 1, 2, ... in order; `miner check` shows where.")
        times += np.bincount(block.anchors, minlength=len(times))
        if (times > 1).any():
            twice = anchors.name(int(np.argmax(times > 1)))
            raise BadInput(f"{rows.where}: anchor {twice!r} has rows in several places; sort by anchor and rank.")
        negatives = np.full((len(block.anchors), width), -1, dtype=np.int32)
        scores = np.full((len(block.anchors), width), np.nan, dtype=np.float32)
        negatives[block.of, block.places], scores[block.of, block.places] = block.negatives, block.scores
        lowest = block.lowest_positive[block.offsets[:-1]].astype(np.float32)
        yield NegativeBlock(block.anchors, negatives, scores, lowest)
