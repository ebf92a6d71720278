"""A negative table beside the pairs it was mined for, read a few anchors at a time."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput, DamagedArtifact
from miner.artifacts.ids import Ids
from miner.artifacts.manifest import MANIFEST, Artifact, open_artifact
from miner.artifacts.negatives import FOOTER_KEY, NEGATIVES, NegativeBlock
from miner.artifacts.pairs import PAIRS, Direction, Pairs, Within, open_pairs, sides
from miner.artifacts.place import Place
from miner.export._contents import Contents
from miner.export._sampling import Drawn, Sampling

__all__ = ["Anchor", "Mined", "Needs", "Tally"]

Rows = npt.NDArray[np.int64]
_NEGATIVES_AT_ONCE = 1 << 16
_HARDEST = Sampling()
_IDS = ["anchor_id", "negative_id"]


@dataclass(frozen=True)
class Needs:
    """What a layout needs of an anchor: so many negatives, the score of every positive."""

    negatives: int = 1
    positive_scores: bool = False


@dataclass
class Tally:
    """How many anchors were written, how many of them with fewer negatives than asked for, and who was left out."""

    written: int = 0
    short: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def left_out_as_text(self) -> str:
        return " and ".join(f"{many} anchor(s) with {why}" for why, many in sorted(self.left_out.items()))


class Anchor(NamedTuple):
    """Rows of an anchor, of all its positives in id order and of its negatives, hardest first, with their ranks in the
    table and their scores."""

    row: int
    positives: list[int]
    negatives: list[int]
    ranks: list[int]
    scores: list[float]
    lowest_positive: float


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Mined:
    """A table whose bytes were checked, its pairs, and what stands for the items of both sides; rows are in id order.

    `num_negatives` are the most that an anchor gives, drawn by `sampling` from the first `depth` ranks of the table.
    `progress(done, total)` is told of anchors passed.
    """

    where: str
    path: Path
    pairs: Pairs
    direction: Direction | Within
    num_negatives: int
    anchors: Contents
    gallery: Contents
    progress: Callable[[int, int], None] = _silent
    sampling: Sampling = _HARDEST
    depth: int = 0
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def open(
        cls,
        table: Place | Path,
        pairs_from: Place | Path,
        num_negatives: int | None = None,
        texts: Path | None = None,
        images: Path | None = None,
        progress: Callable[[int, int], None] = _silent,
        sampling: Sampling = _HARDEST,
    ) -> Mined:
        """Open a table for a file of pairs, or a run's folder of them. Raises BadInput, DamagedArtifact."""
        artifact, path = _open_table(Place.of(table))
        provenance = artifact.manifest.meta["provenance"]
        pairs = _fitting(artifact, _open_pairs(Place.of(pairs_from)))
        k = int(provenance["k"])
        depth = sampling.depth(k, num_negatives)
        pool = max(depth - sampling.skip, 0)
        if num_negatives is not None and not 1 <= num_negatives <= k:
            raise BadInput(
                f"{artifact.where}: this table holds {k} negatives per anchor, but {num_negatives} were asked for; "
                f"ask for 1 to {k}, or mine with a larger k."
            )
        if pool < (num_negatives or 1):
            raise BadInput(
                f"{artifact.where}: of this table's {k} negatives per anchor, {pool} are to be drawn from and "
                f"{num_negatives or 1} to be drawn; skip fewer, draw from more, or mine with a larger k."
            )
        contents = {
            "image": Contents.read(images, "image", pairs.image_ids),
            "text": Contents.read(texts, "text", pairs.text_ids),
        }
        anchors, gallery = sides(provenance["direction"])
        return cls(
            artifact.where,
            path,
            pairs,
            provenance["direction"],
            num_negatives or pool,
            contents[anchors],
            contents[gallery],
            progress,
            sampling,
            depth,
        )

    @cached_property
    def _positives(self) -> tuple[Rows, Rows]:
        offsets, rows = self.pairs.positives_of(self.direction)
        if len(set(sides(self.direction))) == 1:
            other = rows != np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            offsets, rows = np.concatenate([[0], np.cumsum(other)])[offsets], rows[other]
        return offsets, rows

    @property
    def anchor_ids(self) -> Ids:
        return self.pairs.ids(sides(self.direction)[0])

    @property
    def gallery_ids(self) -> Ids:
        return self.pairs.ids(sides(self.direction)[1])

    def warn_of_paths(self, reader: str, *contents: Contents) -> None:
        """Warn when paths of pictures stand where `reader` expects texts."""
        if any(each.kind == "path" for each in contents):
            warnings.warn(f"{reader} takes texts there, and will read the paths of pictures as such.", stacklevel=2)

    def positives(self, anchor_rows: Rows) -> tuple[Rows, Rows]:
        """(how many each of these anchors has, their rows one anchor after the other): what belongs to an anchor, and
        for i2i (t2t) the other images (texts) that share a text (an image) with it."""
        offsets, rows = self._positives
        counts = np.diff(offsets)[anchor_rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return counts, rows[np.repeat(offsets[anchor_rows], counts) + within]

    def blocks(self, needs: Needs) -> Iterator[Drawn]:
        """The anchors that have what is needed, in id order and a few at a time; `tally` counts them and the others."""
        step = max(1, _NEGATIVES_AT_ONCE // self.num_negatives)
        done = 0
        for group in self._drawn():
            for start in range(0, len(group), step):
                block = group.take(slice(start, start + step))
                done += len(block)
                fit = self._fit(block, needs)
                if len(fit):
                    yield fit
                self.progress(done, len(self.anchor_ids))

    def each(self, needs: Needs) -> Iterator[Anchor]:
        """The same, one anchor at a time."""
        for block in self.blocks(needs):
            counts, positives = self.positives(block.anchor_rows)
            ends = np.cumsum(counts)
            found = (block.negatives >= 0).sum(1)
            for at, row in enumerate(block.anchor_rows.tolist()):
                yield Anchor(
                    row,
                    positives[ends[at] - counts[at] : ends[at]].tolist(),
                    block.negatives[at, : found[at]].tolist(),
                    block.ranks[at, : found[at]].tolist(),
                    block.scores[at, : found[at]].tolist(),
                    float(block.lowest_positive[at]),
                )

    def _fit(self, block: Drawn, needs: Needs) -> Drawn:
        found = (block.negatives >= 0).sum(1)
        poor = found < needs.negatives
        positives = self.positives(block.anchor_rows)[0]
        several, lonely = positives > 1, ~poor & (positives == 0) & (needs.negatives > 0)
        # The only positive of an anchor is its lowest; of several, the table has no score but the lowest.
        unknown = ~poor & several if needs.positive_scores else np.zeros_like(poor)
        wanted = f"fewer than {needs.negatives} negatives" if needs.negatives > 1 else "no negative"
        not_held = "several positives, whose scores the table does not hold"
        for why, out in ((wanted, poor), ("no positive", lonely), (not_held, unknown)):
            if out.any():
                self.tally.left_out[why] += int(out.sum())
        keep = ~poor & ~lonely & ~unknown
        self.tally.written += int(keep.sum())
        self.tally.short += int((found[keep] < self.num_negatives).sum())
        return block.take(keep)

    def _drawn(self) -> Iterator[Drawn]:
        """As `_groups`, with the negatives that are wanted."""
        random = self.sampling.start()
        for group in self._groups():
            yield self.sampling.drawn(group, self.num_negatives, random)

    def _groups(self) -> Iterator[NegativeBlock]:
        """Every anchor once, in id order, one block per row group; those without a negative between the others."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        ids = [self.anchor_ids.arrow, self.gallery_ids.arrow]
        done = 0
        with pq.ParquetFile(self.path, read_dictionary=_IDS) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group).combine_chunks()
                rows = []
                for name, known in zip(_IDS, ids, strict=True):
                    column = table[name].chunk(0)
                    found = pc.index_in(column.dictionary, value_set=known).to_numpy(zero_copy_only=False)
                    rows.append(found.astype(np.int64)[column.indices.to_numpy()])
                ranks, stop = table["rank"].to_numpy(), int(rows[0][-1]) + 1
                block = _empty(done, stop, self.depth)
                kept = ranks < self.depth
                cells = rows[0][kept] - done, ranks[kept]
                block.negatives[cells] = rows[1][kept]
                block.scores[cells] = table["score"].to_numpy()[kept]
                block.lowest_positive[rows[0] - done] = table["lowest_positive"].to_numpy()
                yield block
                done = stop
        yield _empty(done, len(self.anchor_ids), self.depth)


def _empty(start: int, stop: int, k: int) -> NegativeBlock:
    return NegativeBlock(
        np.arange(start, stop),
        np.full((stop - start, k), -1, dtype=np.int32),
        np.full((stop - start, k), np.nan, dtype=np.float32),
        np.full(stop - start, np.nan, dtype=np.float32),
    )


def _open_table(place: Place) -> tuple[Artifact, Path]:
    """The artifact and its checked file. Raises BadInput when there is no table, DamagedArtifact."""
    import pyarrow.parquet as pq

    inside = [name for name in ("i2t", "t2i", "i2i", "t2t") if (place / name / MANIFEST).exists()]
    if inside and not (place / MANIFEST).exists():
        raise BadInput(f"{place}: a table is of one direction; give {' or '.join(str(place / n) for n in inside)}.")
    artifact = open_artifact(place, NEGATIVES)
    file = artifact.path("negatives.parquet")
    footer = pq.read_metadata(file).metadata[FOOTER_KEY]
    if json.loads(footer) != artifact.manifest.meta["provenance"]:
        raise DamagedArtifact(f"{artifact.where}: the table's footer and its manifest tell different provenance.")
    return artifact, file


def _open_pairs(place: Place) -> Pairs:
    """The pairs of a file, or of a folder `pairs/` as a run keeps it. Raises BadInput."""
    from miner.folder import _links

    if (place / MANIFEST).exists():
        return open_pairs(open_artifact(place, PAIRS))
    path = place.local
    if path is None:
        raise BadInput(f"{place}: of a store, only the folder pairs/ of a run is read; copy a file of pairs to here.")
    if not path.is_file():
        raise BadInput(f"{place}: no such file; give the pairs.csv, .tsv or .parquet that TABLE was mined for.")
    links = _links(path)
    images, texts = (Ids(column.unique()) for column in links)
    return Pairs.from_columns(images, texts, *links, name=str(path))


def _fitting(artifact: Artifact, pairs: Pairs) -> Pairs:
    """The pairs with their rows in id order, so that the order of storage leaves no trace. Raises BadInput."""
    mined_for = artifact.manifest.meta["provenance"]["pairs"]
    images, texts = pairs.order("image"), pairs.order("text")
    bare = Pairs(
        pairs.image_ids.take(images),
        pairs.text_ids.take(texts),
        pairs.places("image")[pairs.image_rows],
        pairs.places("text")[pairs.text_rows],
        name=pairs.name,
    )
    # A table mined from vectors and ids alone knows no captions.
    if mined_for in (pairs.unordered_fingerprint, bare.unordered_fingerprint):
        return bare
    raise BadInput(
        f"{artifact.where}: this table was mined for other pairs (fingerprint {mined_for[:12]}) than {pairs.name} "
        f"(fingerprint {pairs.unordered_fingerprint[:12]}); give the pairs it was mined for, or mine again for these."
    )
