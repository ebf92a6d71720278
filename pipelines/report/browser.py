"""What the page's browser of anchors reads: columns of numbers, and every item it names once.

Items are numbered per side as the page needs them. By direction d ("i2t", "t2i") and round r:

    d.anchor            item of every listed anchor; .margin, .lowest, .found, .above, .dropped, .suspicion likewise
    d.positives, .at    items of the anchors' positives, and where each anchor's begin; .all how many there are
    d.r.who             which listed anchors this round is told of; r = "all": every one, of the last round
    d.r.items           (who, depth) items of their first negatives, -1 beyond; .scores, .before (rank in the round
                        before from 1 on, 0 not there, 65535 no table), .suspicion, .lowest, .found, .above
    d.cut.who ...       what rules dropped of the detailed anchors: .at, .items, .ranks, .scores, .rules
    d.hubs, .times      the items that are negatives of the most anchors, and of how many; .first how often the hardest
    d.suspects          (anchor, rank) of the most suspicious negatives of the last round

Scores and suspicion are whole numbers from 0 to 65534 between the bounds in `values`; 65535 is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Direction, Pairs, Side, sides
from pipelines.report.listing import Listing, hardest_margin
from pipelines.report.view import RunView

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable

__all__ = ["MAX_POSITIVES", "NONE", "Browser", "browser", "scaled"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

MAX_POSITIVES = 24
NONE = 65535
_HUBS = 60
_SUSPECTS = 200
_CUT = 24  # dropped candidates of one anchor


@dataclass
class Browser:
    """`arrays` and `values` as `packing.pack` takes them; `rows` of the pairs by side and item, the more important
    pictures first in `pictures`."""

    arrays: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    rows: dict[Side, Rows] = field(default_factory=dict)
    pictures: Rows = field(default_factory=lambda: np.empty(0, np.int64))


def browser(run: RunView, listings: dict[Direction, Listing], ranks: int, cells: int) -> Browser:
    """Everything the page says of the listed anchors. `ranks` negatives are told of a detailed anchor in every round;
    of all others as many as `cells` (anchors x ranks, over both directions) allow, 3 at least."""
    pairs = run.dataset.pairs
    made = Browser()
    for direction, listed in listings.items():
        _direction(made, run, listed, ranks, max(3, cells // max(sum(len(each.rows) for each in listings.values()), 1)))
        made.values[direction]["of"] = len(pairs.ids(sides(direction)[0]))
    _number(made, pairs, listings)
    return made


def scaled(values: Array, low: float, high: float) -> npt.NDArray[np.uint16]:
    """0 to 65534 between the bounds; NONE for what is not a number."""
    known = np.isfinite(values)
    share = np.where(known, values - low, 0) / max(high - low, 1e-12)
    return np.where(known, np.clip(np.rint(share * (NONE - 1)), 0, NONE - 1), NONE).astype(np.uint16)


def _direction(made: Browser, run: RunView, listed: Listing, ranks: int, shallow: int) -> None:
    direction, rows, tables = listed.direction, listed.rows, run.tables(listed.direction)
    last = tables[-1][1]
    finite = [table.scores[np.isfinite(table.scores)] for _, table in tables]
    bounds = [float(f(each)) for f in (np.min, np.max) for each in finite if len(each)] or [0.0, 1.0]
    low, high = min(bounds), max(bounds)
    if direction in run.dropped and len(cut := run.dropped[direction].scores):
        low, high = min(low, float(cut.min())), max(high, float(cut.max()))
    told = listed.suspicion[np.isfinite(listed.suspicion)]
    least, most = (float(told.min()), float(told.max())) if len(told) else (0.0, 1.0)
    arrays = {
        "anchor": rows,
        "margin": np.maximum(hardest_margin(last)[rows], -1e9).astype(np.float32),
        "lowest": last.lowest_positive[rows].astype(np.float32),
        "found": last.num_negatives[rows].astype(np.uint16),
        "above": (last.scores[rows] > last.lowest_positive[rows, None]).sum(1).astype(np.uint16),
        "suspicion": scaled(np.where(np.isfinite(listed.most), listed.most, np.nan), least, most),
        **_positives(run.dataset.pairs, direction, rows),
        **_hubs(last),
    }
    blocks: dict[str, dict[str, Array]] = {}
    for number, table in tables:
        earlier = next((t for n, t in reversed(tables) if n < number), None)
        looked = listed.suspicion if table is last else None
        blocks[str(number)] = _block(table, earlier, rows, listed.detailed, ranks, looked)
    if len(listed.detailed) < len(rows):
        earlier = tables[-2][1] if len(tables) > 1 else None
        blocks["all"] = _block(last, earlier, rows, np.arange(len(rows)), min(shallow, ranks), listed.suspicion)
    for name, block in blocks.items():
        block["scores"] = scaled(block["scores"], low, high)
        if "suspicion" in block:
            block["suspicion"] = scaled(block["suspicion"], least, most)
        arrays |= {f"{name}.{key}": values for key, values in block.items()}
    counts, gone = _cut(run, direction, rows, listed.detailed, low, high)
    arrays |= {"dropped": counts, **{f"cut.{key}": values for key, values in gone.items()}}
    arrays["suspects"] = _suspects(listed)
    made.arrays |= {f"{direction}.{name}": values for name, values in arrays.items()}
    made.values[direction] = {
        "rounds": [number for number, _ in tables],
        "k": last.k,
        "score": [low, high],
        "suspicion": [least, most],
        "depths": {name: block["items"].shape[1] for name, block in blocks.items()},
        "rules": list(run.dropped[direction].rules) if direction in run.dropped else [],
    }


def _block(
    table: NegativeTable, earlier: NegativeTable | None, rows: Rows, who: Rows, ranks: int, seen: Array | None
) -> dict[str, Array]:
    at, depth = rows[who], min(ranks, table.k)
    negatives, scores = table.negatives[at, :depth], table.scores[at, :depth]
    there = negatives >= 0
    block = {
        "who": who.astype(np.int32),
        "items": negatives.astype(np.int64),
        "scores": np.where(there, scores, np.nan),
        "before": np.where(there, _before(negatives, None if earlier is None else earlier.negatives[at]), NONE),
        "lowest": table.lowest_positive[at].astype(np.float32),
        "found": table.num_negatives[at].astype(np.uint16),
        "above": (table.scores[at] > table.lowest_positive[at, None]).sum(1).astype(np.uint16),
    }
    block["before"] = block["before"].astype(np.uint16)
    if seen is not None:
        block["suspicion"] = seen[who, :depth]
    return block


def _before(negatives: Array, earlier: Array | None, step: int = 2048) -> Array:
    """Rank in the earlier list, from 1 on; 0 for what was not in it."""
    if earlier is None:
        return np.full(negatives.shape, NONE)
    found = np.zeros(negatives.shape, dtype=np.int64)
    for start in range(0, len(negatives), step):
        same = negatives[start : start + step, :, None] == earlier[start : start + step, None, :]
        found[start : start + step] = np.where(same.any(2), same.argmax(2) + 1, 0)
    return found


def _positives(pairs: Pairs, direction: Direction, rows: Rows) -> dict[str, Array]:
    offsets, own = pairs.positives(sides(direction)[0])
    counts = offsets[rows + 1] - offsets[rows]
    shown = np.minimum(counts, MAX_POSITIVES)
    starts = np.concatenate([[0], np.cumsum(shown)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], shown)
    return {
        "positives": own[np.repeat(offsets[rows], shown) + within],
        "positives.at": starts.astype(np.int32),
        "positives.all": np.minimum(counts, NONE).astype(np.uint16),
    }


def _hubs(table: NegativeTable) -> dict[str, Array]:
    there = table.negatives >= 0
    times = np.bincount(table.negatives[there])
    first = np.bincount(table.negatives[:, 0][there[:, 0]], minlength=len(times)) if table.k else times
    order = np.lexsort((np.arange(len(times)), -times))[:_HUBS]
    order = order[times[order] > 0]
    return {"hubs": order, "hubs.times": times[order].astype(np.int32), "hubs.first": first[order].astype(np.int32)}


def _cut(
    run: RunView, direction: Direction, rows: Rows, detailed: Rows, low: float, high: float
) -> tuple[Array, dict[str, Array]]:
    """(dropped candidates of every listed anchor, those of the detailed ones)."""
    dropped = run.dropped.get(direction)
    if dropped is None:
        none = np.empty(0, np.int64)
        return np.zeros(len(rows), np.uint16), {
            "who": none.astype(np.int32), "at": np.zeros(1, np.int32), "items": none,
            "ranks": none.astype(np.int32), "scores": none.astype(np.uint16), "rules": none.astype(np.uint8),
        }  # fmt: skip
    counts = np.bincount(dropped.anchors, minlength=int(rows.max(initial=-1)) + 1)
    order = np.lexsort((dropped.ranks, dropped.anchors))
    starts = np.searchsorted(dropped.anchors[order], rows[detailed])
    shown = np.minimum(counts[rows[detailed]], _CUT)
    ends = np.concatenate([[0], np.cumsum(shown)])
    which = order[np.repeat(starts, shown) + np.arange(ends[-1]) - np.repeat(ends[:-1], shown)]
    return np.minimum(counts[rows], NONE).astype(np.uint16), {
        "who": detailed.astype(np.int32),
        "at": ends.astype(np.int32),
        "items": dropped.candidates[which],
        "ranks": dropped.ranks[which].astype(np.int32),
        "scores": scaled(dropped.scores[which], low, high),
        "rules": dropped.rule[which].astype(np.uint8),
    }


def _suspects(listed: Listing) -> Array:
    flat = np.where(np.isnan(listed.suspicion), -np.inf, listed.suspicion).ravel()
    order = np.lexsort((np.arange(len(flat)), -flat))[:_SUSPECTS]
    order = order[np.isfinite(flat[order])]
    depth = listed.suspicion.shape[1]
    return np.stack([order // depth, order % depth], 1).astype(np.int32) if depth else np.empty((0, 2), np.int32)


_ITEMS = ("positives", "hubs", "cut.items")


def _number(made: Browser, pairs: Pairs, listings: dict[Direction, Listing]) -> None:
    """Number the items of each side and write the numbers where the rows were."""
    named: dict[Side, list[str]] = {"image": [], "text": []}
    for direction in listings:
        side, other = sides(direction)
        named[side].append(f"{direction}.anchor")
        keys = [key for key in made.arrays if key.startswith(f"{direction}.")]
        named[other] += [k for k in keys if k.removeprefix(f"{direction}.") in _ITEMS or k.endswith(".items")]
    used = {side: np.zeros(len(pairs.ids(side)), dtype=bool) for side in named}
    for side, keys in named.items():
        for key in keys:
            rows = made.arrays[key]
            used[side][rows[rows >= 0]] = True
    # A text is shown with the first picture it belongs to, a picture with its most specific text.
    offsets, own = pairs.positives("text")
    used["image"][own[offsets[np.flatnonzero(used["text"])]]] = True
    specific = _most_specific(pairs)
    used["text"][specific[np.flatnonzero(used["image"])]] = True
    numbers: dict[Side, Array] = {}
    for side, flags in used.items():
        made.rows[side] = np.flatnonzero(flags)
        numbers[side] = np.cumsum(flags) - 1
    first = own[offsets[made.rows["text"]]]
    again = np.flatnonzero(~used["image"][first])
    made.pictures = _by_importance(made, listings, own[offsets[:-1]])
    for side, keys in named.items():
        for key in set(keys):
            rows = made.arrays[key]
            made.arrays[key] = np.where(rows >= 0, numbers[side][rows], -1).astype(np.int32)
    seen = numbers["image"][first]
    seen[again] = -1
    made.arrays["text.seen"] = seen.astype(np.int32)
    made.arrays["image.caption"] = numbers["text"][specific[made.rows["image"]]].astype(np.int32)
    made.values["image.id"] = list(pairs.image_ids.take(made.rows["image"]))
    made.values["text.id"] = list(pairs.text_ids.take(made.rows["text"]))
    made.values["text"] = [pairs.texts[row] for row in made.rows["text"].tolist()] if pairs.texts else []


def _most_specific(pairs: Pairs) -> Rows:
    """(images,) the text of each image that belongs to the fewest images: a shared one tells it from no sibling."""
    offsets, texts = pairs.positives("image")
    shared = np.diff(pairs.positives("text")[0])[texts]
    images = np.repeat(np.arange(pairs.num_images), np.diff(offsets))
    order = np.lexsort((np.arange(len(texts)), shared, images))
    return np.asarray(texts[order][offsets[:-1]], dtype=np.int64)


def _by_importance(made: Browser, listings: dict[Direction, Listing], seen_with: Rows) -> Rows:
    """Rows of images, those of the most suspicious anchors and of their negatives first; each once. `seen_with`
    (texts,) is the picture that each text is shown with."""
    offers: list[tuple[Array, Array]] = []  # (rank of importance, rows)
    for direction, listed in listings.items():
        order = np.lexsort((np.arange(len(listed.rows)), -listed.most))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        last = str(made.values[direction]["rounds"][-1])
        negatives = made.arrays[f"{direction}.{last}.items"]
        who = place[made.arrays[f"{direction}.{last}.who"]]
        there = negatives >= 0
        whose = np.repeat(who, there.sum(1))
        if direction == "i2t":
            offers += [(place, listed.rows), (whose, seen_with[negatives[there]])]
        else:
            starts = made.arrays["t2i.positives.at"]
            offers += [(np.repeat(place, np.diff(starts)), made.arrays["t2i.positives"]), (whose, negatives[there])]
    if not offers:
        return made.rows["image"]
    importance, rows = (np.concatenate(column) for column in zip(*offers, strict=True))
    ordered = rows[np.argsort(importance, kind="stable")]
    _, first = np.unique(ordered, return_index=True)
    chosen = ordered[np.sort(first)]
    return np.concatenate([chosen, np.setdiff1d(made.rows["image"], chosen)])
