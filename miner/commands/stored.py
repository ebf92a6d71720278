"""Stored indexes, as `miner build-index` wrote them: found, checked, loaded, and searched as hard as is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miner.artifacts.command import LocalPath

if TYPE_CHECKING:
    from miner.approximate import Deeper, Miner
    from miner.artifacts.candidates import Candidates
    from miner.artifacts.negatives import NegativeBlock
    from miner.artifacts.pairs import Direction, Pairs, Side, Within
    from miner.folder import Folder
    from miner.index import Index
    from miner.plan_index import Through

__all__ = ["StoredIndex", "deeper", "finders", "index_options", "stored_indexes", "to_be_built"]

Settings = tuple[int | None, int | None, int | None]

_RECALL, _SAMPLE = 0.95, 1000  # where nobody says
_EFFORT = ("--nprobe", "--ef-search", "--k-factor")


def index_options(command: Any) -> Any:
    """The options of a search through an index."""
    options = [
        click.option("--index", "index_folder", type=LocalPath(), help="What `miner build-index` wrote."),
        click.option(
            "--recall",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="Of an approximate index: look so hard that this share of the exact negatives is found. [default: "
            f"{_RECALL}, unless the next three say how hard]",
        ),
        click.option("--nprobe", type=click.IntRange(min=1), help="Of an IVF index: lists to look into."),
        click.option("--ef-search", type=click.IntRange(min=1), help="Of an HNSW index: candidates kept on the way."),
        click.option("--k-factor", type=click.IntRange(min=1), help="Proposals per negative, each scored exactly."),
        click.option(
            "--recall-sample",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Anchors that recall is measured on, and as many to choose the effort on. [default: {_SAMPLE:,}]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class StoredIndex:
    """A stored index of one side, and how hard it is to look where it is approximate."""

    folder: Path
    side: Side
    fingerprint: str
    approximate: bool
    recall: float | None
    recall_sample: int
    settings: Settings

    def inputs(self) -> dict[str, Any]:
        """What of it determines a table: nothing, when it is exact."""
        if not self.approximate:
            return {}
        asked = {"recall": self.recall, "recall_sample": self.recall_sample, "search": list(self.settings)}
        return {"index": self.fingerprint, **asked}

    def planned(self) -> Through:
        """As `miner plan` takes it."""
        from miner.artifacts.manifest import open_artifact
        from miner.index import INDEX, SearchSettings
        from miner.index.factory import Config
        from miner.plan_index import Through

        meta = open_artifact(self.folder / self.side, INDEX).manifest.meta
        config = Config("Flat")
        if self.approximate:
            config = Config(meta["factory"], meta["train_sample"], meta["seed"])
        return Through(config, SearchSettings(*self.settings), self.recall, self.recall_sample, there=True)

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
        found_by, sentence = prepare(miner, vectors, self.recall, size=self.recall_sample)
        click.echo(sentence)
        return _counted(miner, miner.blocks(vectors, progress=shown)), {"index": "factory", **found_by}


def stored_indexes(
    folder: Path | None,
    opened: Folder,
    directions: list[Direction | Within],
    metric: str,
    recall: float | None,
    recall_sample: int | None,
    settings: Settings,
) -> dict[Side, StoredIndex]:
    """The indexes that are searched, by side, where there is a folder of them. Raises BadInput for one of other vectors
    or another metric, and for settings that no index is there to take."""
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.pairs import sides
    from miner.index import INDEX

    wanted = _wanted(recall, settings)
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
        asked_of = (wanted, recall_sample or _SAMPLE, settings) if approximate else (None, _SAMPLE, (None,) * 3)
        found[side] = StoredIndex(folder, side, artifact.manifest.fingerprint, approximate, *asked_of)
    _check_asked(any(each.approximate for each in found.values()), recall, recall_sample, settings)
    return found


def finders(
    folder: Path, source: Path, opened: Folder, candidates: Mapping[Direction | Within, Candidates]
) -> dict[Side, StoredIndex]:
    """The approximate indexes that found the candidates in `source`, by side. Raises BadInput for any other, and when
    the candidates are those of an exact search."""
    from miner.artifacts.candidates import CANDIDATES
    from miner.artifacts.errors import BadInput
    from miner.artifacts.manifest import open_artifact
    from miner.artifacts.pairs import sides

    found: dict[Side, StoredIndex] = {}
    for direction, each in candidates.items():
        if each.provenance["index"] == "flat":
            continue
        side, metric = sides(direction)[1], str(each.provenance["metric"])
        found |= stored_indexes(folder, opened, [direction], metric, None, None, (None,) * 3)
        if open_artifact(source / direction, CANDIDATES).manifest.inputs.get("index") != found[side].fingerprint:
            raise BadInput(
                f"{folder / side}: another index found the candidates of {direction} in {source}; give that one, or "
                "leave --index out: what is missing is then listed."
            )
    if not found:
        raise BadInput(
            f"--index is to search deeper where an approximate index found the candidates, and those in {source} are "
            "of an exact search; leave it out."
        )
    return found


def deeper(
    opened: Folder, indexes: Mapping[Side, StoredIndex], threads: int, candidates: Candidates
) -> Callable[..., Any]:
    """Searches anchors deeper than their candidates, through the approximate index that found these."""
    from functools import cache

    from miner.approximate import Deeper, Miner
    from miner.artifacts.pairs import sides
    from miner.index import SearchSettings

    anchors, gallery = sides(candidates.direction)
    metric = str(candidates.provenance["metric"])

    @cache
    def there() -> Deeper:
        vectors = opened.vectors(gallery, metric)
        settings = SearchSettings(**candidates.provenance["search"])
        through: Any = indexes[gallery].load()
        known = candidates.num_candidates
        miner = Miner(through, vectors, opened.pairs, candidates.direction, known, settings, threads=threads)
        return Deeper(miner, opened.vectors(anchors, metric), candidates)

    return lambda anchor_rows, depth: there()(anchor_rows, depth)


def to_be_built(
    factory: str,
    opened: Folder,
    directions: list[Direction | Within],
    recall: float | None,
    recall_sample: int | None,
    settings: Settings,
) -> dict[Side, Through]:
    """The indexes that a factory string would make for these directions, to plan with. Raises BadInput as
    `stored_indexes`."""
    from miner.artifacts.pairs import sides
    from miner.index import SearchSettings
    from miner.index.factory import Config, automatic
    from miner.plan_index import Through

    wanted, found = _wanted(recall, settings), {}
    for side in dict.fromkeys(sides(direction)[1] for direction in directions):
        name = automatic(len(opened.pairs.ids(side))) if factory == "auto" else factory
        given = (SearchSettings(*settings), wanted, recall_sample or _SAMPLE)
        found[side] = Through(Config(name), *given) if name != "Flat" else Through(Config(name))
    _check_asked(any(each.config.factory != "Flat" for each in found.values()), recall, recall_sample, settings)
    return found


def _wanted(recall: float | None, settings: Settings) -> float | None:
    """The recall to look for; None where settings say how hard to look. Raises BadInput for both."""
    from miner.artifacts.errors import BadInput

    how = [name for name, value in zip(_EFFORT, settings, strict=True) if value]
    if recall is not None and how:
        raise BadInput(f"--recall chooses how hard the index looks, and {how[0]} says so too; give one of them.")
    return None if how else recall or _RECALL


def _check_asked(approximate: bool, recall: float | None, recall_sample: int | None, settings: Settings) -> None:
    """Raise BadInput for what only an approximate index takes, where there is none."""
    from miner.artifacts.errors import BadInput

    given = {"--recall": recall, "--recall-sample": recall_sample, **dict(zip(_EFFORT, settings, strict=True))}
    said = [name for name, value in given.items() if value is not None]
    if said and not approximate:
        raise BadInput(
            f"{said[0]} is for approximate indexes, and this search is exact; leave it out, or give --index one that "
            "was built with --factory."
        )


def _counted(miner: Miner, blocks: Iterator[NegativeBlock]) -> Iterator[NegativeBlock]:
    """The blocks, and after the last how many anchors had to be searched again."""
    yield from blocks
    click.echo(
        f"{miner.direction}: {miner.deeper:,} anchors were searched again, deeper and harder; {miner.short:,} have "
        f"fewer than {miner.k} all the same"
    )
