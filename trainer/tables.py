"""The negative tables of a folder, opened for the pairs that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import open_artifact
from miner.artifacts.negatives import NEGATIVES, NegativeTable
from miner.artifacts.pairs import Direction, Pairs
from miner.artifacts.place import Place

__all__ = ["open_tables"]


def open_tables(folder: Place | Path | str, pairs: Pairs) -> dict[Direction, NegativeTable]:
    """`folder/i2t` and `folder/t2i`, as `miner mine --out folder` writes them.

    A table mined from vectors and ids alone knows no captions; it fits all the same. Raises BadInput for a missing
    table or one of other pairs, DamagedArtifact for changed bytes.
    """
    place = Place.of(folder)
    if not place.names():
        raise BadInput(f"{place}: no such folder; give the one `miner mine --out` wrote, which holds i2t/ and t2i/.")
    bare = Pairs(pairs.image_ids, pairs.text_ids, pairs.image_rows, pairs.text_rows, name=pairs.name)
    directions: tuple[Direction, ...] = get_args(Direction)
    tables = {}
    for direction in directions:
        artifact = open_artifact(place / direction, NEGATIVES)
        mined_for = artifact.manifest.meta["provenance"]["pairs"]
        tables[direction] = NegativeTable.open(artifact, bare if mined_for == bare.unordered_fingerprint else pairs)
    return tables
