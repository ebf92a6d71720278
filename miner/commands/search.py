"""What is searched by `miner mine`, how, and where the results go: exactly, or through a stored index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.commands.build_index import fresh_index
from miner.commands.shown import progress, summary

if TYPE_CHECKING:
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Pairs, Side, Within
    from miner.folder import Folder
    from miner.index import Index

__all__ = ["Search", "StoredIndex", "stored_indexes"]


@dataclass(frozen=True)
class Search:
    """What is searched, how, and where the results go."""

    opened: Folder
    out: Path
    metric: str
    indexes: Mapping[Side, StoredIndex]
    threads: int
    memory: int | None

    def tables(self, directions: list[Direction | Within], k: int) -> None:
        """Negative tables, one per direction."""
        from miner.artifacts.negatives import NEGATIVES, write_negatives

        drafts = {each: self._draft(each, NEGATIVES, each, {"k": k}) for each in directions}
        for each, blocks, provenance in self._left(drafts, k):
            summary(each, write_negatives(drafts[each], blocks, self.opened.pairs, each, k, provenance))
        for each, draft in drafts.items():
            _forget(draft, each)

    def candidates(self, directions: list[Direction | Within], wanted: int) -> dict[Direction | Within, Candidates]:
        """Candidates, one artifact per direction; as many as there can be, where fewer than `wanted` exist."""
        from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
        from miner.artifacts.pairs import sides

        number = min([wanted, *(len(self.opened.pairs.ids(sides(each)[1])) for each in directions)])
        drafts = {
            each: self._draft(f"candidates/{each}", CANDIDATES, each, {"num_candidates": number}) for each in directions
        }
        for each, blocks, provenance in self._left(drafts, number):
            provenance = {**provenance, "vectors": self.opened.fingerprints}
            for _ in write_candidates(drafts[each], blocks, self.opened.pairs, each, number, provenance):
                pass
        found = {}
        for each, draft in drafts.items():
            _forget(draft, each)
            artifact = draft.committed()
            assert artifact is not None
            found[each] = Candidates.open(artifact, self.opened.pairs)
        return found

    def _draft(self, prefix: str, kind: str, direction: Direction | Within, wanted: dict[str, int]) -> Draft:
        from miner.artifacts.manifest import Draft
        from miner.artifacts.pairs import sides
        from miner.artifacts.store import LocalStore

        index = self.indexes.get(sides(direction)[1])
        inputs = {
            "pairs": self.opened.pairs.fingerprint,
            **self.opened.fingerprints,
            "direction": direction,
            **wanted,
            "metric": self.metric,
            "index": "flat",
            **(index.inputs() if index else {}),
        }
        return Draft(LocalStore(self.out), prefix, kind, inputs)

    def _left(
        self, drafts: Mapping[Direction | Within, Draft], k: int
    ) -> Iterator[tuple[Direction | Within, Iterator[NegativeBlock], dict[str, Any]]]:
        """What is found for the directions that are not there yet, and what tables say of how."""
        shards = {each: _shards(draft, each) for each, draft in drafts.items()}
        left = []
        for each, draft in drafts.items():
            draft.store.sweep(draft.prefix)
            draft.store.sweep(shards[each].prefix)
            artifact = draft.committed()
            if artifact is None:
                left.append(each)
                continue
            artifact.verify()
            click.echo(f"{each}: already {'done' if draft.kind == 'negatives' else 'searched'}")
            if draft.kind == "negatives":
                summary(each, artifact)
        if left:
            yield from self._searches(left, k, shards)

    def _searches(
        self, directions: list[Direction | Within], k: int, shards: Mapping[Direction | Within, Draft]
    ) -> Iterator[tuple[Direction | Within, Iterator[NegativeBlock], dict[str, Any]]]:
        """Each direction with its negatives: from one pass for all of them, or with an index one search each."""
        from miner.artifacts.pairs import sides
        from miner.index._faiss import MAX_GPU_DEPTH, num_gpus
        from miner.matrix import mine_exhaustively
        from miner.memory import available
        from miner.mine import mine
        from miner.plan import check_fits, plan

        pairs, threads = self.opened.pairs, self.threads
        vectors: dict[Side, Any] = {side: self.opened.vectors(side, self.metric) for side in ("image", "text")}
        about = {"round": None, "metric": self.metric, "index": "flat", "checkpoint": self.opened.checkpoint}
        too_deep = k > MAX_GPU_DEPTH // 2  # and positives come on top
        if not self.indexes and (num_gpus() == 0 or too_deep):
            why = f", as k = {k} is deeper than FAISS looks on a gpu" if num_gpus() else ""
            click.echo("comparing " + " and ".join(_compared(self.opened, directions)) + f" on the cpu{why}")
            free = available()
            memory = self.memory or free // 2
            check_fits(plan(vectors, pairs, directions, k, memory, threads, timed=False), self.out, free)
            found = mine_exhaustively(
                vectors,
                pairs,
                directions,
                k,
                threads=threads,
                memory=memory,
                drafts=shards,
                progress=progress(" and ".join(directions), "items"),
            )
            for each, blocks in found:
                yield each, blocks, about
            return
        for each in directions:
            anchors, gallery = sides(each)
            shown = progress(each, "anchors")
            chosen = self.indexes.get(gallery)
            index = chosen.load() if chosen else fresh_index(self.opened, gallery, self.metric)
            if chosen and chosen.approximate:
                blocks, found_by = chosen.search(
                    index, vectors[anchors], vectors[gallery], pairs, each, k, threads, shown
                )
                yield each, blocks, {**about, **found_by}
            else:
                exact = mine(vectors[anchors], index, vectors[gallery], pairs, each, k, threads=threads, progress=shown)
                yield each, exact, about


@dataclass(frozen=True)
class StoredIndex:
    """A stored index of one side, and how hard it is to look where it is approximate."""

    folder: Path
    side: Side
    fingerprint: str
    approximate: bool
    recall: float | None
    settings: tuple[int | None, int | None, int | None]

    def inputs(self) -> dict[str, Any]:
        """What of it determines a table: nothing, when it is exact."""
        if not self.approximate:
            return {}
        return {"index": self.fingerprint, "recall": self.recall, "search": list(self.settings)}

    def load(self) -> Index:
        from miner.artifacts.manifest import open_artifact
        from miner.index import INDEX, load

        index = load(open_artifact(self.folder / self.side, INDEX))
        where = f" ({index.note})" if index.note else ""
        click.echo(f"searching {self.side}s with the index {self.folder / self.side} on the {index.device}{where}")
        return index

    def search(
        self,
        index: Any,
        vectors: Any,
        gallery: Any,
        pairs: Pairs,
        direction: Direction | Within,
        k: int,
        threads: int,
        shown: Any,
    ) -> tuple[Iterator[NegativeBlock], dict[str, Any]]:
        """The negatives, and what a table says of how they were found."""
        from miner.approximate import Miner
        from miner.index import SearchSettings
        from miner.tuning import prepare

        given = SearchSettings(*self.settings) if any(self.settings) else None
        miner = Miner(index, gallery, pairs, direction, k, given, threads=threads)
        found_by, sentence = prepare(miner, vectors, self.recall)
        click.echo(sentence)
        return miner.blocks(vectors, progress=shown), {"index": "factory", **found_by}


def stored_indexes(
    folder: Path | None,
    opened: Folder,
    directions: list[Direction | Within],
    metric: str,
    recall: float | None,
    settings: tuple[int | None, int | None, int | None],
) -> dict[Side, StoredIndex]:
    """The indexes that are searched, by side, where there is a folder of them. Raises BadInput for one of other vectors
    or another metric, and for settings that no index is there to take."""
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.pairs import sides
    from miner.index import INDEX

    how = [name for name, value in zip(("--nprobe", "--ef-search", "--k-factor"), settings, strict=True) if value]
    if recall is not None and how:
        raise BadInput(f"--recall chooses how hard the index looks, and {how[0]} says so too; give one of them.")
    found: dict[Side, StoredIndex] = {}
    for side in dict.fromkeys(sides(direction)[1] for direction in directions) if folder else ():
        assert folder is not None
        artifact = open_artifact(folder / side, INDEX)
        asked = {"side": side, "metric": metric, "vectors": opened.fingerprints[side]}
        if {name: artifact.manifest.inputs.get(name) for name in asked} != asked:
            raise BadInput(
                f"{folder / side}: this index was built from other vectors or another metric than asked for now "
                f"({metric}); build it again into another folder."
            )
        approximate = artifact.manifest.inputs["kind"] != "flat"
        wanted = None if not approximate or how else recall or 0.95
        found[side] = StoredIndex(
            folder, side, artifact.manifest.fingerprint, approximate, wanted, settings if approximate else (None,) * 3
        )
    if (recall is not None or how) and not any(each.approximate for each in found.values()):
        said = "--recall" if recall is not None else how[0]
        raise BadInput(
            f"{said} is for approximate indexes, and this search is exact; leave it out, or give --index one that was "
            "built with --factory."
        )
    return found


def _shards(draft: Draft, direction: Direction | Within) -> Draft:
    """Where the shards of a search are kept until its result is written."""
    return replace(draft, prefix=f".search/{direction}", kind="search")


def _forget(draft: Draft, direction: Direction | Within) -> None:
    from miner.matrix import forget

    forget(_shards(draft, direction))


def _compared(opened: Folder, directions: list[Direction | Within]) -> list[str]:
    """What is compared with what, each once."""
    from miner.artifacts.pairs import sides

    named = {side: f"{len(opened.pairs.ids(side))} {side}s" for direction in directions for side in sides(direction)}
    passes = dict.fromkeys(tuple(sorted(sides(direction))) for direction in directions)
    return [f"{named[one]} with {named[other] if one != other else 'each other'}" for one, other in passes]
