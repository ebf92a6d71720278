"""What is searched by `miner mine`, how, and where the results go: exactly, or through a stored index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miner.commands.build_index import fresh_index
from miner.commands.shown import ALOUD, Voice, summary

if TYPE_CHECKING:
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Side, Within
    from miner.commands.stored import StoredIndex
    from miner.filters import Chosen
    from miner.folder import Folder
    from miner.plan import Choosing

__all__ = ["Search", "width", "with_opposites"]


@dataclass(frozen=True)
class Search:
    """What is searched, how, and where the results go."""

    opened: Folder
    out: Path
    metric: str
    indexes: Mapping[Side, StoredIndex]
    threads: int
    memory: int | None
    choosing: Choosing | None = None
    voice: Voice = ALOUD

    def tables(self, directions: list[Direction | Within], k: int) -> None:
        """Negative tables, one per direction."""
        from miner.artifacts.negatives import NEGATIVES, write_negatives

        drafts = {each: self._draft(each, NEGATIVES, each, {"k": k}) for each in directions}
        for each, blocks, provenance in self._left(drafts, k):
            done = write_negatives(drafts[each], blocks, self.opened.pairs, each, k, provenance)
            summary(each, done, self.voice.say)
        for each, draft in drafts.items():
            _forget(draft, each)

    def candidates(self, directions: list[Direction | Within], number: int) -> dict[Direction | Within, Candidates]:
        """So many candidates (see `width`), one artifact per direction."""
        from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates

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
            self.voice.say(f"{each}: already {'done' if draft.kind == 'negatives' else 'searched'}")
            if draft.kind == "negatives":
                summary(each, artifact, self.voice.say)
        if left:
            yield from self._searches(left, k, shards)

    def _searches(
        self, directions: list[Direction | Within], k: int, shards: Mapping[Direction | Within, Draft]
    ) -> Iterator[tuple[Direction | Within, Iterator[NegativeBlock], dict[str, Any]]]:
        """Each direction with its negatives: from one pass for all of them, or with an index one search each."""
        from miner.artifacts.pairs import sides
        from miner.fused import device
        from miner.index._faiss import MAX_GPU_DEPTH, num_gpus, unseen
        from miner.index.factory import Config
        from miner.matrix import mine_exhaustively
        from miner.memory import half, in_all
        from miner.nearest import mine
        from miner.plan import check_fits, plan
        from miner.plan_index import Through, plan_through

        pairs, threads = self.opened.pairs, self.threads
        vectors: dict[Side, Any] = {side: self.opened.vectors(side, self.metric) for side in ("image", "text")}
        about = {"round": None, "metric": self.metric, "index": "flat", "checkpoint": self.opened.checkpoint}
        gpu = None if self.indexes else device()
        too_deep = k > MAX_GPU_DEPTH // 2  # and positives come on top
        if not self.indexes and (gpu or num_gpus() == 0 or too_deep):
            why = f", as k = {k} is deeper than FAISS looks on a gpu" if num_gpus() and not gpu else ""
            note = f" ({unseen()})" if unseen() and not gpu else ""
            where = f"the gpu ({gpu})" if gpu else f"the cpu{note}"
            self.voice.say("comparing " + " and ".join(_compared(self.opened, directions)) + f" on {where}{why}")
            memory = self.memory or half()
            planned = plan(vectors, pairs, directions, k, memory, threads, choosing=self.choosing, timed=False)
            check_fits(planned, self.out, in_all())
            found = mine_exhaustively(
                vectors,
                pairs,
                directions,
                k,
                threads=threads,
                memory=memory,
                drafts=shards,
                device=gpu,
                progress=self.voice.progress(" and ".join(directions), "items"),
            )
            for each, blocks in found:
                yield each, blocks, about
            return
        built = {side: each.planned() for side, each in self.indexes.items()}
        built = {sides(each)[1]: Through(Config("Flat")) for each in directions} | built
        planned = plan_through(vectors, pairs, directions, k, built, threads, choosing=self.choosing, timed=False)
        check_fits(planned, self.out, in_all())
        for each in directions:
            anchors, gallery = sides(each)
            shown = self.voice.progress(each, "anchors")
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


def width(
    opened: Folder, directions: Sequence[Direction | Within], k: int, wanted: int | None, rules: Sequence[Chosen]
) -> int:
    """How many candidates to search: those wanted, else twice k, and what a rule looks at in the other direction; no
    more than there are. Raises BadInput where that is too few for a rule."""
    from miner.artifacts.pairs import sides
    from miner.filters import agreement

    looking = [rule.config for rule in rules if isinstance(rule.config, agreement.Config)]
    most = min(len(opened.pairs.ids(sides(each)[1])) for each in directions)
    searched = min(wanted or max([2 * k, *(config.within for config in looking)]), most)
    for config in looking:
        for each in directions:
            agreement.check_searched(config, each, searched, opened.pairs)
    return searched


def with_opposites(directions: list[Direction | Within], rules: Sequence[Chosen]) -> list[Direction | Within]:
    """What is searched for rules: these directions, and the other ones where a rule looks at their candidates."""
    from miner.filters.agreement import opposite

    more = map(opposite, directions) if any(rule.opposite for rule in rules) else ()
    return list(dict.fromkeys([*directions, *more]))


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
