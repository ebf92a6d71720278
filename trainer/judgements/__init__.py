"""Which images and texts belong together beyond the pairs of a data set, as people judged it; one file per source.

The captions of a caption set were written for one image each, but describe others as well: a judged caption of the COCO
test has 8.5 positive images on average, not one (ECCV Caption, Chun et al., 2204.03359). A source is a module of this
package with a frozen `Config` and `read(config, pairs) -> Judgements`; its module name is its name on the command line.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Pairs, Side
from trainer import registry

__all__ = ["Judgements", "configure", "read", "sources", "spoken"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judgements:
    """All positives of a data set, and the queries for which they are known.

    `image_rows[n]` and `text_rows[n]` belong together: the pairs of the data set without those that people refuted, and
    those that people added. Only the rows `judged_images` and `judged_texts` count as queries: elsewhere, what is not
    listed here may well be a positive that nobody looked at. A judged query whose every positive was refuted has none
    to find, and does not count either.

    `notes` are sentences for a person, such as how much of a file was about the data. Raises BadInput when no query
    counts in a direction.
    """

    image_rows: Rows
    text_rows: Rows
    judged_images: Rows
    judged_texts: Rows
    name: str = field(default="judgements", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        links = np.unique(np.stack([self.image_rows, self.text_rows], 1).astype(np.int64), axis=0)
        object.__setattr__(self, "image_rows", np.ascontiguousarray(links[:, 0]))
        object.__setattr__(self, "text_rows", np.ascontiguousarray(links[:, 1]))
        object.__setattr__(self, "judged_images", np.unique(self.judged_images.astype(np.int64)))
        object.__setattr__(self, "judged_texts", np.unique(self.judged_texts.astype(np.int64)))
        for side in get_args(Side):
            if not len(self.positives(side)[0]):
                raise BadInput(
                    f"{self.name}: no {side} was judged that has a positive; evaluate the split that the judgements "
                    "are about, with its full gallery."
                )

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        name: str,
        *,
        added: Iterable[tuple[int, int]],
        refuted: Iterable[tuple[int, int]] = (),
        judged_images: Iterable[int] | None = None,
        judged_texts: Iterable[int] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Judgements:
        """What people said about `pairs`, as (image row, text row) and rows; None: every image, or text, was judged."""
        own = set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))
        links = np.array(sorted((own - set(refuted)) | set(added)), dtype=np.int64).reshape(-1, 2)
        images = np.fromiter(range(pairs.num_images) if judged_images is None else judged_images, dtype=np.int64)
        texts = np.fromiter(range(pairs.num_texts) if judged_texts is None else judged_texts, dtype=np.int64)
        return cls(links[:, 0], links[:, 1], images, texts, f"{name} for {pairs.name}", notes)

    def positives(self, side: Side) -> tuple[Rows, Rows, Rows]:
        """(queries, offsets, rows): row `queries[n]` of `side` has the positives `rows[offsets[n]:offsets[n + 1]]`."""
        keys, others, judged = self.image_rows, self.text_rows, self.judged_images
        if side == "text":
            keys, others, judged = self.text_rows, self.image_rows, self.judged_texts
        counts = np.isin(keys, judged)
        order = np.lexsort((others[counts], keys[counts]))
        queries, begins = np.unique(keys[counts][order], return_index=True)
        return queries, np.append(begins, len(order)), others[counts][order]

    def within(self, image_rows: Rows, text_rows: Rows) -> Judgements:
        """The judgements about a part of the gallery: sorted rows of it, which become rows 0, 1, ..."""
        inside = np.isin(self.image_rows, image_rows) & np.isin(self.text_rows, text_rows)
        return Judgements(
            np.searchsorted(image_rows, self.image_rows[inside]),
            np.searchsorted(text_rows, self.text_rows[inside]),
            np.flatnonzero(np.isin(image_rows, self.judged_images)),
            np.flatnonzero(np.isin(text_rows, self.judged_texts)),
            name=f"{self.name}, {len(image_rows)} images from row {image_rows[0]}",
        )

    def changes(self, pairs: Pairs) -> tuple[int, int]:
        """How many positives were added to `pairs`, and how many of its pairs refuted."""
        own = int(pairs.linked(self.image_rows, self.text_rows).sum())
        return len(self.image_rows) - own, pairs.num_pairs - own

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows."""
        digest = hashlib.sha256()
        for rows in (self.image_rows, self.text_rows, self.judged_images, self.judged_texts):
            digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return digest.hexdigest()


def sources() -> list[str]:
    """Names of the sources."""
    return registry.names(__name__)


def configure(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The frozen `Config` of a source. Raises BadInput for an unknown source or setting."""
    return registry.configure(__name__, name, settings or {})


def spoken(text: str) -> tuple[str, dict[str, Any]]:
    """`cxc:sits_test.csv,min_score=4` -> ("cxc", {"path": "sits_test.csv", "min_score": 4}). Raises BadInput.

    What stands first and has no `=` is the path.
    """
    name, _, rest = text.partition(":")
    path, _, others = rest.partition(",")
    if not path or "=" in path:
        return registry.spoken(text)
    name, settings = registry.spoken(f"{name}:{others}")
    return name, {"path": path, **settings}


def read(config: Any, pairs: Pairs) -> Judgements:
    """What the source that `config` describes says about `pairs`. Raises BadInput for wrong files or other data."""
    return cast(Judgements, sys.modules[type(config).__module__].read(config, pairs))
