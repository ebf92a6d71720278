"""`miner mine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from miner.commands.build_index import fresh_index
from miner.commands.filter import RULES, Filtering, Rules, filter_direction
from miner.commands.shown import DIRECTION, FOLDER, MEMORY, METRIC, OUT, THREADS, chosen, progress, summary

if TYPE_CHECKING:
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.manifest import Draft
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Pairs, Side, Within
    from miner.folder import Folder
    from miner.index import Index

__all__ = ["mine"]


@click.command(cls=Rules)
@FOLDER
@OUT
@click.option("--k", type=click.IntRange(min=1), default=50, show_default=True, help="Negatives per anchor.")
@DIRECTION
@RULES
@click.option(
    "--num-candidates",
    type=click.IntRange(min=1),
    help="Search so many per anchor for rules to choose from, and keep them in OUT/candidates, for `miner filter` to "
    "choose again. [default: twice --k where there is a rule]",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(min=1),
    help="Search no deeper for an anchor that rules leave with fewer than k. [default: 16 times the candidates]",
)
@click.option("--texts", type=click.Path(path_type=Path), help="Table of id and text, for rules that look at texts.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Table of id and path, for rules that look at pictures."
)
@click.option("--index", "index_folder", type=click.Path(path_type=Path), help="What `miner build-index` wrote.")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of an approximate index: look so hard that this share of the exact negatives is found. [default: 0.95, "
    "unless the next three say how hard]",
)
@click.option("--nprobe", type=click.IntRange(min=1), help="Of an IVF index: lists to look into.")
@click.option("--ef-search", type=click.IntRange(min=1), help="Of an HNSW index: candidates kept on the way.")
@click.option("--k-factor", type=click.IntRange(min=1), help="Proposals per negative, each scored exactly.")
@METRIC
@THREADS
@MEMORY
def mine(
    folder: Path,
    out: Path,
    k: int,
    direction: str,
    said: tuple[str, ...],
    num_candidates: int | None,
    max_candidates: int | None,
    texts: Path | None,
    images: Path | None,
    index_folder: Path | None,
    recall: float | None,
    nprobe: int | None,
    ef_search: int | None,
    k_factor: int | None,
    metric: str,
    threads: int | None,
    memory: str | None,
) -> None:
    """Write the k hardest negatives of every anchor of FOLDER: per direction one table below --out.

    \b
    Examples:
        miner mine vectors/ --k 50 --direction i2t --out tables/
        miner mine vectors/ --k 300 --metric cosine --out tables/
        miner mine vectors/ --k 50 --rule default --out tables/
        miner mine vectors/ --k 50 --rule same-text --rule relative-margin:margin=0.05 \\
            --texts captions.csv --out tables/

    A positive is never among them (for i2i, nor is an image that shares a text with the anchor). Rules drop more, each
    candidate with its reason in dropped.parquet, and the search goes deeper for who is left with fewer than k. An
    anchor that has fewer than k still gets what there is, and is listed with the reason in shortfalls.parquet.

    Every pair is compared, unless --index gives an approximate index: then the recall against an exact search is
    measured on a sample, and stored in the table.

    What does not fit into memory is searched in shards. Stopped at any moment, the same command goes on at the shard.
    """
    from miner.artifacts.errors import BadInput
    from miner.artifacts.lock import hold
    from miner.filters import chosen as rules_of
    from miner.folder import open_folder
    from miner.index._faiss import set_threads
    from miner.memory import parse_size
    from miner.mine import check_k

    rules = rules_of(said)
    if max_candidates and not (rules or num_candidates):
        raise BadInput("--max-candidates bounds how deep rules are searched for; give a --rule too, or leave it out.")
    budget = parse_size(memory) if memory else None
    opened = open_folder(folder)
    if metric == "ip" and not opened.unit_length():
        click.echo("note: the vectors do not all have length 1, so long ones win; --metric cosine compares angles.")
    directions = cast("list[Direction | Within]", chosen(direction, "i2t", "t2i"))
    for each in directions:
        check_k(opened.pairs, each, k)
    if num_candidates is not None and num_candidates < k:
        raise BadInput(f"--num-candidates {num_candidates} are fewer than the {k} negatives wanted; give at least {k}.")
    threads = set_threads(threads)
    click.get_current_context().with_resource(hold(out))
    indexes = _indexes(index_folder, opened, directions, metric, recall, (nprobe, ef_search, k_factor))
    search = _Search(opened, out, metric, indexes, threads, budget)
    if not rules and num_candidates is None:
        search.tables(directions, k)
        return
    wanted = list(directions)
    if any(rule.opposite for rule in rules):
        from miner.filters.agreement import opposite

        wanted = list(dict.fromkeys([*directions, *map(opposite, directions)]))
    candidates = search.candidates(wanted, num_candidates or 2 * k)
    filtering = Filtering(opened, candidates, rules, k, max_candidates, True, texts, images, threads)
    for each in directions:
        filter_direction(out, filtering, each)
    click.echo(
        f"choose again by other rules: miner filter {folder} --candidates {out / 'candidates'} --rule ... --out ..."
    )


@dataclass(frozen=True)
class _Search:
    """What is searched, how, and where the results go."""

    opened: Folder
    out: Path
    metric: str
    indexes: Mapping[Side, _Index]
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
class _Index:
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


def _indexes(
    folder: Path | None,
    opened: Folder,
    directions: list[Direction | Within],
    metric: str,
    recall: float | None,
    settings: tuple[int | None, int | None, int | None],
) -> dict[Side, _Index]:
    """The indexes that are searched, by side, where there is a folder of them. Raises BadInput for one of other vectors
    or another metric, and for settings that no index is there to take."""
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.pairs import sides
    from miner.index import INDEX

    how = [name for name, value in zip(("--nprobe", "--ef-search", "--k-factor"), settings, strict=True) if value]
    if recall is not None and how:
        raise BadInput(f"--recall chooses how hard the index looks, and {how[0]} says so too; give one of them.")
    found: dict[Side, _Index] = {}
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
        found[side] = _Index(
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
