"""What mining through an approximate index will take, the index built or still to be built; see `miner.plan`.

Time is that of the same kind of index over a few thousand items, built and searched here and now. Finding the list of
every vector, in training and after, and looking into lists are scaled up by how many there are. How hard tuning will
look is not known before: time is that of the settings given, or of those that the index begins with.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner import exhaustive
from miner.approximate import Miner
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.index import SearchSettings, _faiss, factory
from miner.nearest import block_size
from miner.plan import Choosing, Plan, Stage, always_held, last_stages, reading, small
from miner.search import SLACK

__all__ = ["Through", "plan_through"]

Vectors = npt.NDArray[np.floating[Any]]

_LISTS = 16  # of the small index
_ANCHORS = 256  # that it is searched for
_CODED = 1 << 16  # vectors that codes are trained on, at most
_SETTINGS = 12  # that tuning tries
_CELL = 128  # bytes of a proposal while it is ranked


@dataclass(frozen=True)
class Through:
    """The index of one side; its factory is not "auto", and "Flat" compares everything. `settings` are those that
    somebody gave, `recall` what is tuned for, None where nothing is. `there`: it was built before."""

    config: factory.Config
    settings: SearchSettings = field(default_factory=SearchSettings)
    recall: float | None = None
    recall_sample: int = 1000
    there: bool = False


def plan_through(
    vectors: Mapping[Side, Vectors],
    pairs: Pairs,
    directions: Sequence[Direction | Within],
    k: int,
    indexes: Mapping[Side, Through],
    threads: int = 1,
    *,
    choosing: Choosing | None = None,
    timed: bool = True,
) -> Plan:
    """As `miner.plan.plan`, with the indexes of all sides that are searched. Raises BadInput for a factory that cannot
    work with so many vectors, and for settings that an index does not have."""
    always = always_held(pairs, directions)
    stages, notes = [reading(vectors, always, timed)], []
    searched: dict[Side, _Searched] = {}
    for direction in directions:
        gallery = sides(direction)[1]
        if gallery in searched:
            continue
        found = searched[gallery] = _Searched(indexes[gallery], vectors[gallery], k)
        if timed:
            found.try_out(vectors, pairs, direction, threads)
        if not found.through.there:
            stages.append(
                Stage(f"build index of {gallery}s", found.building, always + found.needed.build, found.needed.disk)
            )
        if found.settings.chosen():
            spoken = " ".join(f"{name}={value}" for name, value in found.settings.chosen().items())
            tuned = "; tuning may choose others" if found.through.recall is not None else ""
            notes.append(f"{gallery}s: the time is that of {found.through.config.factory} at {spoken}{tuned}")
    for direction in directions:
        anchor, gallery = sides(direction)
        found, anchors = searched[gallery], len(pairs.ids(anchor))
        memory = always + found.needed.search + found.ranking
        if not found.shape.exact:
            sample = min(found.through.recall_sample, max(1, anchors // 2))
            samples, tries, what = (1, 1, "measure") if found.through.recall is None else (2, _SETTINGS, "tune")
            seconds = None
            if found.searching is not None:
                seconds = sample * (samples * found.compare * found.rows + tries * found.searching)
            panels = threads * (72 * 2**20 + exhaustive.TILE[1] * 12 * found.dim)
            exact = panels + sample * (8 * (3 * k + 70) + 8 * found.dim)
            stages.append(Stage(f"{what} {direction}", seconds, memory + exact, 0))
        seconds = None if found.searching is None else found.searching * anchors
        stages.append(Stage(f"search {direction}", seconds, memory, 0))
    stages += last_stages(vectors, pairs, directions, k, choosing, threads, timed)
    less = "an index with smaller codes (such as IVF4096,PQ64x4fs), a smaller --k or one direction at a time"
    return Plan(tuple(stages), (), 0, tuple(notes), less)


class _Searched:
    """An index of one side: its sizes, and once it was tried out seconds: `building` it, None where that is not known,
    `searching` for an anchor, and to `compare` two vectors."""

    def __init__(self, through: Through, vectors: Vectors, k: int) -> None:
        self.through, self.k, (self.rows, self.dim) = through, k, vectors.shape
        self.shape = factory.shape(through.config, self.rows, self.dim, through.settings)
        self.needed = factory.estimate(through.config, self.rows, self.dim)
        self.settings = self.shape.settings
        self.building: float | None = None
        self.searching: float | None = None
        self.compare = 0.0

    @property
    def ranking(self) -> int:
        """Bytes of what is proposed to a block of anchors."""
        depth = (self.settings.k_factor or 1) * self.k + SLACK
        return _CELL * max(1 << 20, block_size(depth) * depth)

    def try_out(
        self, vectors: Mapping[Side, Vectors], pairs: Pairs, direction: Direction | Within, threads: int
    ) -> None:
        """Build and search the same over a few thousand items, with lists to look into that hold as many vectors."""
        some, fewer = small(vectors, pairs)
        anchor, other = sides(direction)
        gallery, shape = some[other], self.shape
        lists = max(1, min(_LISTS, len(gallery) // 39))
        probed = shape.lists and max(1, min(lists, round(lists * self._visited / len(gallery))))
        settings = replace(self.settings, nprobe=probed or None)
        name = re.sub(r"IVF\d+(_HNSW\d+)?", f"IVF{lists}", self.through.config.factory)
        # OPQ is trained for minutes, however few the vectors; once it is there it is a rotation like another.
        turned = re.sub(r"OPQ\d+(_(\d+))?", lambda said: f"PCAR{said[2] or self.dim}", name)
        with _Clock() as training:
            trained = factory.empty(gallery, factory.Config(turned, seed=self.through.config.seed))
        with _Clock() as adding:
            index = factory.filled(trained, gallery)
        miner = Miner(index, gallery, fewer, direction, min(self.k, len(gallery)), settings, threads=threads)
        rows = fewer.order(anchor)[:_ANCHORS]
        queries = np.ascontiguousarray(some[anchor][rows], dtype=np.float32)
        with _Clock() as ranking:
            miner.block(queries, rows)
        with _Clock() as looking:
            index.search(queries, miner.depth)
        self.compare = self._compare(gallery)
        grown = math.log2(self.rows) / math.log2(len(gallery)) if shape.graph and self.rows > len(gallery) > 1 else 1.0
        trained_on = factory.shape(trained.config, len(gallery), self.dim, SearchSettings()).sample
        coded = min(shape.sample, _CODED) / trained_on
        found = self.compare * (shape.rounds * shape.lists * shape.sample + shape.compared * self.rows)
        if turned == name:
            self.building = found + coded * training.seconds + grown * self.rows / len(gallery) * adding.seconds
        seen = len(gallery) * (probed / lists if probed else 1.0)
        more = 0.0 if shape.graph else max(0.0, self._visited / seen - 1)
        self.searching = self.compare * shape.compared + (ranking.seconds + more * looking.seconds) / len(rows)

    @property
    def _visited(self) -> float:
        """Vectors that a search looks at, unless it walks a graph."""
        return self.rows * (self.settings.nprobe or 1) / self.shape.lists if self.shape.lists else float(self.rows)

    def _compare(self, gallery: Vectors) -> float:
        """Seconds, of comparing a vector with a centre."""
        flat = _faiss.faiss().IndexFlatIP(self.dim)
        flat.add(np.ascontiguousarray(gallery[:1024], dtype=np.float32))
        found, queries = _faiss.placed(flat).index, np.ascontiguousarray(gallery, dtype=np.float32)
        with _Clock() as clock:
            found.search(queries, 1)
        return clock.seconds / (len(queries) * int(flat.ntotal))


class _Clock:
    """The seconds that a block took."""

    def __enter__(self) -> _Clock:
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
