"""Search one direction, shard of anchors by shard, and write the negative table.

An approximate index is searched by one thread, with the settings that `tune` chose, so that its proposals are the same
on any number of workers.

For a cross-attention model the search finds candidates, which the model's own score then ranks; one part more measures,
for a sample of anchors scored against everything, how many of the truly hardest were among the candidates.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from miner.artifacts.elements import ElementLists
from miner.artifacts.embeddings import Embeddings, shard_ranges
from miner.artifacts.manifest import Artifact, FileRecord, canonical_json
from miner.artifacts.negatives import NegativeBlock, write_negatives
from miner.artifacts.pairs import Direction, Side, sides
from miner.artifacts.store import Store
from pipelines.jobs import Task, artifact_at, named_rows
from pipelines.jobs.encode import model_at
from pipelines.kept_verdicts import kept_copy

if TYPE_CHECKING:
    from miner.artifacts.candidates import Candidates

__all__ = ["MineJob", "approximate"]

_RECALL = "recall.json"


class MineJob:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.direction: Direction = task.stage.parameters["direction"]
        self.anchor, self.gallery = sides(self.direction)
        self.pairs = task.pairs()
        self.order = self.pairs.order(self.anchor)
        self.settings = task.settings.mine.of(self.direction, task.stage.round)
        self.two_stage = task.settings.two_stage
        self.k = self.settings.k
        self.searched = self.settings.searched(len(self.pairs.ids(self.gallery)), self.two_stage)
        # What the parts find: the negatives, or what rules choose them from.
        self.width = max(self.k, self.searched) if self.settings.selective else self.k
        # How an approximate index is searched, and what it then finds; None where the search is exact.
        self.tuned = task.parent("tuned").manifest.meta if "tuned" in dict(task.parents) else None
        self.ranges = shard_ranges(len(self.order), self.settings.shard_anchors)
        self.names = [f"anchors-{index:05d}.npz" for index in range(len(self.ranges))]
        if self.two_stage:
            self.names.append(_RECALL)

    def part(self, index: int) -> FileRecord:
        name = self.names[index]
        done = self.task.draft.find_part(name)
        if done is not None:
            return done
        if name == _RECALL:
            return self._measure()
        start, stop = self.ranges[index]
        block = self._search(self.order[start:stop])
        if self.two_stage:
            from miner.rescore import rescore

            with self._score() as score:
                block = rescore(block, score, self.pairs, self.direction, self.width)
        return self.task.draft.add_part(name, _pack(block), stop - start)

    def where(self, index: int) -> str:
        """Anchors are counted in the order of their ids."""
        if self.names[index] == _RECALL:
            return "the sample that recall is measured on"
        (start, stop), ids = self.ranges[index], self.pairs.ids(self.anchor)
        ends = (ids[self.order[start]], ids[self.order[stop - 1]])
        return named_rows(f"{self.anchor} anchors in order of ids", (start, stop), ends)

    def finish(self) -> Artifact:
        for index in range(len(self.names)):
            self.part(index)
        if self.settings.selective:
            artifact = self._selected()
        else:
            artifact = write_negatives(
                self.task.draft, self._blocks(), self.pairs, self.direction, self.k, self._provenance()
            )
        for name in self.names:
            self.task.draft.drop_part(name, keep_file=False)
        return artifact

    def _selected(self) -> Artifact:
        """The negatives that the rules leave of the candidates, which are gone afterwards."""
        from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
        from miner.filters import by_verdicts, chosen
        from miner.select import Selection, write_selection

        draft, pairs = self.task.draft, self.pairs
        place = replace(draft, prefix=f"{draft.prefix}/candidates", kind=CANDIDATES)
        about = self._provenance()
        if place.committed() is None:
            for _ in write_candidates(place, self._blocks(), pairs, self.direction, self.width, about):
                pass
        found = place.committed()
        assert found is not None
        candidates = Candidates.open(found, pairs)
        kept = self.settings.kept_verdicts
        verdicts = by_verdicts(kept_copy(draft.store, kept)) if kept else ()
        selection = Selection(
            candidates,
            pairs,
            (*verdicts, *chosen(self.settings.rules)),
            self.k,
            vectors={side: _vectors(draft.store, self.task.prefix(side)) for side in (self.anchor, self.gallery)},
            # A second stage's order is not that of the vectors: what was searched deeper would not begin with it.
            deepen=None if self.two_stage else partial(self._deeper, candidates) if self.tuned else self._search,
        )
        artifact = write_selection(draft, selection, about)
        draft.store.remove(place.prefix)
        return artifact

    def _search(self, rows: Any, depth: int | None = None) -> NegativeBlock:
        """What the index finds for some anchors: the negatives, or the candidates of rules or a two-stage search."""
        from miner.nearest import mine_block

        store, k = self.task.draft.store, depth or self.searched
        if self.tuned is not None:
            with approximate(self.task, self.direction, k, self.tuned["search"]) as (miner, vectors):
                return cast(NegativeBlock, miner.block(vectors[rows], rows))
        gallery = _vectors(store, self.task.prefix(self.gallery))
        vectors = _vectors(store, self.task.prefix(self.anchor))[rows]
        return mine_block(
            vectors, _index(store, self.task.prefix("index")), gallery, self.pairs, self.direction, k, rows
        )

    def _deeper(self, candidates: Candidates, rows: Any, depth: int) -> NegativeBlock:
        """The candidates of some anchors and what an approximate search finds after them."""
        from miner.approximate import Deeper

        assert self.tuned is not None
        with approximate(self.task, self.direction, self.searched, self.tuned["search"]) as (miner, vectors):
            return Deeper(miner, vectors, candidates)(rows, depth)

    def _measure(self) -> FileRecord:
        from miner.rescore import recall

        random = np.random.default_rng([self.task.stage.parameters["seed"], self.task.stage.round])
        size = min(self.task.stage.parameters["recall_sample"], len(self.order))
        sample = self.order[np.sort(random.choice(len(self.order), size, replace=False))]
        with self._score() as score:
            found = recall(self._search(sample), score.table, self.pairs, self.direction, self.k, depths=(1, 10))
        return self.task.draft.add_part(_RECALL, canonical_json({"anchors": size, "recall": found}), size)

    @contextlib.contextmanager
    def _score(self) -> Iterator[Any]:
        """The model's own score of an anchor with rows of the gallery."""
        from trainer.encode import quiet
        from trainer.rescoring import Scorer

        store = self.task.draft.store
        model = model_at(store, self.task.prefix("checkpoint"))
        images, texts = (_elements(store, self.task.prefix(side)) for side in get_args(Side))
        with quiet(model, threads=1):
            yield Scorer(model, images, texts, self.direction)

    def _blocks(self) -> Iterator[NegativeBlock]:
        for name in self.names[: len(self.ranges)]:
            yield _unpack(self.task.draft.read_part(name))

    def _provenance(self) -> dict[str, Any]:
        checkpoint = self.task.parent(self.anchor).manifest.meta["checkpoint"]
        about = {
            "round": self.task.stage.round,
            "metric": "ip",
            "index": self.task.parent("index").manifest.meta["kind"],
            "checkpoint": checkpoint,
            **(self.tuned or {}),
        }
        if self.two_stage:
            model = type(self.task.settings.model).__module__.rpartition(".")[2]
            measured = json.loads(self.task.draft.read_part(_RECALL))
            about |= {"metric": model, "num_candidates": self.searched, "stage_one": measured}
        return about


@contextlib.contextmanager
def approximate(
    task: Task, direction: Direction, k: int, settings: Mapping[str, int] | None = None
) -> Iterator[tuple[Any, Any]]:
    """A `Miner` through the stored index, searching with one thread of faiss; the vectors of the anchors by row."""
    from miner.approximate import Miner
    from miner.index import SearchSettings
    from miner.index._faiss import threads

    store, (anchor, gallery) = task.draft.store, sides(direction)
    index, vectors = _index(store, task.prefix("index")), _vectors(store, task.prefix(gallery))
    with threads(1):
        chosen = SearchSettings(**settings) if settings is not None else None
        yield Miner(index, vectors, task.pairs(), direction, k, chosen), _vectors(store, task.prefix(anchor))


def _pack(block: NegativeBlock) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        anchor_rows=block.anchor_rows,
        negatives=block.negatives,
        scores=block.scores,
        lowest_positive=block.lowest_positive,
        reason_rows=np.array(list(block.reasons), dtype=np.int64),
        reasons=np.array(list(block.reasons.values()), dtype=np.str_),
    )
    return buffer.getvalue()


def _unpack(data: bytes) -> NegativeBlock:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        reasons = zip(arrays["reason_rows"].tolist(), arrays["reasons"].tolist(), strict=True)
        names = ("anchor_rows", "negatives", "scores", "lowest_positive")
        return NegativeBlock(**{name: arrays[name] for name in names}, reasons=dict(reasons))


@lru_cache(maxsize=2)
def _elements(store: Store, prefix: str) -> ElementLists:
    return ElementLists.open(artifact_at(store, prefix))


@lru_cache(maxsize=2)
def _vectors(store: Store, prefix: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return Embeddings.open(artifact_at(store, prefix)).array()


@lru_cache(maxsize=1)
def _index(store: Store, prefix: str) -> Any:
    from miner.index import load

    return load(artifact_at(store, prefix))
