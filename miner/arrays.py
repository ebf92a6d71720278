"""`miner.mine`: hard negatives of arrays at hand, in a notebook or a program of yours.

    found = miner.mine(images, texts, pairs, k=50, rules=["default"])
    found["i2t"].rows, found["i2t"].scores      # (images, 50): rows of `texts`, hardest first
    found.to_pandas()
    found.save("negatives/")                    # what `miner mine --out negatives/` writes, byte for byte

The search is the one of `miner mine`, in a temporary folder that lives as long as what is returned.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from miner.artifacts.copies import copied
from miner.artifacts.errors import BadInput
from miner.artifacts.given import array_of, ids_of, links_of
from miner.artifacts.manifest import MANIFEST, Artifact, Draft, find_artifact, open_artifact
from miner.artifacts.negatives import NEGATIVES, NegativeTable
from miner.artifacts.pairs import Direction, Pairs, Side, Within, sides
from miner.artifacts.parquet import open_parquet
from miner.artifacts.store import LocalStore
from miner.folder import Folder, checked

if TYPE_CHECKING:
    from miner.filters import Chosen

__all__ = ["Mined", "Table", "mine"]

_DIRECTIONS: Mapping[str, tuple[Direction | Within, ...]] = {
    "both": ("i2t", "t2i"), "i2t": ("i2t",), "t2i": ("t2i",), "i2i": ("i2i",), "t2t": ("t2t",),
}  # fmt: skip


class _Place:
    """A temporary folder, there as long as anything that was mined into it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="quintain-mined-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True, repr=False)
class Table(NegativeTable):
    """The negatives of one direction, by row of the arrays that were given.

    `negatives`, or `rows`, (anchors, k) int32 are rows of the other side, hardest first, -1 beyond what was found;
    `scores` (anchors, k) float32 is nan there. `lowest_positive` (anchors,) is the score of an anchor's farthest
    positive, `num_negatives` (anchors,) how many were found, `provenance` how.
    """

    _artifact: Artifact = field(kw_only=True)
    _pairs: Pairs = field(kw_only=True)
    _place: _Place = field(kw_only=True)

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """(anchors, k), the same as `negatives`."""
        return self.negatives

    @property
    def anchor_ids(self) -> npt.NDArray[np.object_]:
        """(anchors,) str."""
        return np.array(list(self._pairs.ids(sides(self.direction)[0])), dtype=object)

    @property
    def ids(self) -> npt.NDArray[np.object_]:
        """(anchors, k) str, ids of the negatives; None beyond what was found."""
        names = np.array([*self._pairs.ids(sides(self.direction)[1]), None], dtype=object)
        return names[self.negatives]  # row -1 is the last, None

    def to_arrow(self) -> Any:
        """A pyarrow Table as it is stored: anchor_id, rank, negative_id, score, lowest_positive; anchors in id order.
        Raises DamagedArtifact when somebody changed the temporary files."""
        return open_parquet(self._artifact, "negatives.parquet").read()

    def to_pandas(self) -> Any:
        """The same as a pandas DataFrame. Raises BadInput where there is no pandas."""
        return _pandas(self.to_arrow())

    def shortfalls(self) -> Any:
        """A pyarrow Table of the anchors with fewer than k, and why: anchor_id, found, wanted, lowest_positive,
        reason."""
        return open_parquet(self._artifact, "shortfalls.parquet").read()

    def __repr__(self) -> str:
        meta = self._artifact.manifest.meta
        return (
            f"<{self.direction}: {meta['anchors']:,} anchors x {self.k} negatives, {meta['shortfalls']:,} shortfalls, "
            f"hardness {meta['hardness_mean']:+.4f}>"
        )


class Mined(Mapping[str, Table]):
    """What `mine` found: a `Table` per direction, as `found["i2t"]`. `trainer.fit(tables=found)` trains on it."""

    def __init__(self, place: _Place, pairs: Pairs, directions: Sequence[str]) -> None:
        self._place, self._pairs, self._directions = place, pairs, tuple(directions)

    @cached_property
    def _tables(self) -> dict[str, Table]:
        found = {}
        for direction in self._directions:
            artifact = open_artifact(self._place.folder / direction, NEGATIVES)
            opened = NegativeTable.open(artifact, self._pairs)
            found[direction] = Table(**vars(opened), _artifact=artifact, _pairs=self._pairs, _place=self._place)
        return found

    def __getitem__(self, direction: str) -> Table:
        if direction not in self._directions:
            raise KeyError(f"{direction!r}: what was mined is {', '.join(self._directions)}")
        return self._tables[direction]

    def __iter__(self) -> Iterator[str]:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)

    def __repr__(self) -> str:
        return f"Mined({', '.join(map(repr, self.values()))})"

    def to_arrow(self) -> Any:
        """All directions in one pyarrow Table, the column `direction` first; see `Table.to_arrow`."""
        import pyarrow as pa

        tables = []
        for direction, table in self.items():
            rows = table.to_arrow()
            tables.append(rows.add_column(0, "direction", pa.array([direction] * len(rows), pa.string())))
        return pa.concat_tables(tables)

    def to_pandas(self) -> Any:
        """The same as a pandas DataFrame. Raises BadInput where there is no pandas."""
        return _pandas(self.to_arrow())

    def save(self, folder: str | Path) -> Path:
        """Write the artifacts that `miner mine --out folder` writes for these vectors, byte for byte; with rules the
        candidates too, for `miner filter`. Once written, the same call does nothing.

        Raises BadInput when the folder holds another search, AnotherWriter when somebody writes there.
        """
        from miner.artifacts.lock import hold

        out = Path(folder)
        with hold(out):
            for manifest in sorted(self._place.folder.rglob(MANIFEST)):
                _copy(manifest.parent, out, str(manifest.parent.relative_to(self._place.folder)))
        return out


def mine(
    images: Any,
    texts: Any,
    pairs: Any = None,
    k: int = 50,
    *,
    direction: Literal["i2t", "t2i", "both", "i2i", "t2t"] = "both",
    rules: str | Sequence[str] = (),
    metric: Literal["ip", "cosine"] = "ip",
    image_ids: Sequence[Any] | None = None,
    text_ids: Sequence[Any] | None = None,
    captions: Sequence[str] | None = None,
    pictures: Sequence[str | Path] | None = None,
    num_candidates: int | None = None,
    max_candidates: int | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> Mined:
    """The k hardest negatives of every anchor, never one of its positives, by exact search.

    `images` (images, dim) and `texts` (texts, dim) are float16, float32 or float64: numpy arrays, torch tensors, or
    what numpy makes an array of. `pairs` says who belongs to whom, many-to-many and each item at least once: None (row
    i to row i), (n, 2) whole numbers (row of `images`, row of `texts`), (n, 2) ids, or a table or dict with the columns
    image_id and text_id. Ids are row numbers unless `image_ids` and `text_ids` name them.

    `rules` drop candidates as `miner mine --rule` does: "default", or ["relative-margin:margin=0.2"]. Rules that look
    at texts need `captions` (by row), those that look at pictures their paths in `pictures`. `num_candidates` are
    searched per anchor for them to choose from [default: 2 k], and at most `max_candidates`. `threads` [default: all
    cores] and `memory` ("8G", or bytes) [default: half of what is free] bound the search. `progress` is shown on
    stderr when it is wanted.

    Raises BadInput, with a sentence, for whatever of this cannot be mined.
    """
    from miner import filters
    from miner.commands.mining import Mining
    from miner.commands.shown import Voice
    from miner.commands.shown import progress as bar
    from miner.index import _faiss
    from miner.memory import parse_size

    if direction not in _DIRECTIONS:
        raise BadInput(f"direction = {direction!r}; it is one of {', '.join(_DIRECTIONS)}.")
    if metric not in ("ip", "cosine"):
        raise BadInput(f"metric = {metric!r}; it is ip or cosine.")
    for name, number in (("k", k), ("num_candidates", num_candidates), ("max_candidates", max_candidates)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1):
            raise BadInput(f"{name} = {number!r}; give a whole number from 1 on.")
    chosen = filters.chosen((rules,) if isinstance(rules, str) else tuple(rules))
    opened = _opened(images, texts, pairs, image_ids, text_ids)
    mining = Mining(
        opened,
        list(_DIRECTIONS[direction]),
        int(k),
        chosen,
        num_candidates,
        max_candidates,
        metric,
        parse_size(memory) if isinstance(memory, str) else memory,
        at_hand=_at_hand(chosen, opened.pairs, captions, pictures),
    )
    mining.check()
    voice = Voice(lambda line: None, bar if progress else _silent)
    place = _Place()
    with _faiss.threads(threads) if threads is not None else nullcontext():
        mining.write(place.folder, _faiss.set_threads(None), voice=voice)
    return Mined(place, opened.pairs, mining.directions)


def _opened(images: Any, texts: Any, pairs: Any, image_ids: Any, text_ids: Any) -> Folder:
    vectors: dict[Side, Any] = {"image": array_of(images, "images"), "text": array_of(texts, "texts")}
    names: dict[Side, Any] = {"image": image_ids, "text": text_ids}
    ids = {side: ids_of(names[side], len(vectors[side]), side) for side in vectors}
    links = links_of(pairs, ids["image"], ids["text"])
    prints = {side: _fingerprint(each) for side, each in vectors.items()}
    rounded = {side: checked(each, f"{side}s", ids[side]) for side, each in vectors.items()}
    dims = {side: each.shape[1] for side, each in rounded.items()}
    if dims["image"] != dims["text"]:
        raise BadInput(f"images have dim {dims['image']} and texts dim {dims['text']}; both must come from one model.")
    return Folder(links, rounded["image"], rounded["text"], cast(dict[str, str], prints))


def _at_hand(
    rules: Sequence[Chosen], pairs: Pairs, captions: Sequence[str] | None, pictures: Sequence[str | Path] | None
) -> dict[Side, list[str]]:
    """What items are, by side, where it was given. Raises BadInput for what no rule looks at, or lacks."""
    looked = {side for rule in rules for side in rule.contents}
    found: dict[Side, list[str]] = {}
    both: tuple[tuple[Side, str, Any], ...] = (("text", "captions", captions), ("image", "pictures", pictures))
    for side, name, given in both:
        if given is None:
            if side in looked:
                raise BadInput(f"a rule looks at the {side}s themselves; give `{name}`, one per row of {side}s.")
            continue
        if side not in looked:
            raise BadInput(f"`{name}` are for rules that look at {side}s, and there is none; leave them out.")
        found[side] = [str(each) for each in given]
        if len(found[side]) != len(pairs.ids(side)):
            raise BadInput(f"{len(found[side])} {name} for {len(pairs.ids(side))} {side}s; give one each.")
    return found


class _Hashing:
    """A file of which the hash alone is wanted."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)


def _fingerprint(vectors: npt.NDArray[Any]) -> str:
    """What `miner mine` records of a file into which numpy.save wrote this array."""
    file = _Hashing()
    np.lib.format.write_array(cast(Any, file), vectors, allow_pickle=False)
    return file.digest.hexdigest()


def _silent(label: str, items: str, *, brief: bool = False) -> Callable[[int, int], None]:
    return lambda done, total: None


def _copy(folder: Path, out: Path, prefix: str) -> None:
    source = find_artifact(LocalStore(folder), ".")
    assert source is not None
    draft = Draft(LocalStore(out), prefix, source.manifest.kind, source.manifest.inputs)
    if draft.committed() is None:
        draft.commit(copied(source, draft), source.manifest.meta)


def _pandas(table: Any) -> Any:
    try:
        return table.to_pandas()
    except ImportError as missing:
        raise BadInput("pandas is not installed: pip install pandas, or use to_arrow().") from missing
