"""What people said of pairs of anchor and candidate, and what share of all candidates it makes false negatives.

The judged are rarely a random sample, and those of one anchor (or of one item) resemble each other. So

- each is weighted by how many candidates of its rank it stands for, in bands of rank; nothing helps against a choice
  within a band that depends on the answer;
- the interval is Wilson's with the effective sample size n_eff = p (1 - p) / v, where v is the variance of the weighted
  share with anchors, or items if that is larger, as the units that were drawn (linearised); with Student's t for the
  number of units; n_eff is at most Kish's, and the number of units where v is 0. Korn and Graubard, Survey Methodology
  24 (1998); Franco et al., J. Survey Stat. Methodol. 7 (2019). Resampling anchors instead would give no interval at all
  when none, or all, of few pairs match.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Pairs, Within, sides

__all__ = ["Judged", "Share", "estimate", "read_judged", "weights"]

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_NAMES = (("anchor_id", "negative_id"), ("image_id", "text_id"))
_SUFFIXES = (".csv", ".tsv", ".parquet")
_LEAST = 20  # judged pairs in a band of ranks
# 97.5% points of Student's t for few degrees of freedom; above, an expansion is exact to three digits.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


@dataclass(frozen=True)
class Judged:
    """Pairs of anchor row and gallery row, each once and none a positive; `match` says whether they belong together."""

    anchors: Ints
    negatives: Ints
    match: npt.NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.match)


@dataclass(frozen=True)
class Share:
    """A share with its 95% interval. `pairs` judged of so many `anchors` stand behind it, worth `effective` alone."""

    share: float
    low: float
    high: float
    pairs: int
    anchors: int
    effective: float

    def numbers(self) -> dict[str, Any]:
        """As JSON takes it."""
        rounded = {name: round(getattr(self, name), 6) for name in ("share", "low", "high")}
        return {**rounded, "pairs": self.pairs, "anchors": self.anchors, "effective": round(self.effective, 1)}


def read_judged(path: Path, pairs: Pairs, direction: Direction | Within, match_at: float | None) -> Judged:
    """Read a table of judgements for one direction; a pair that several people judged counts by their mean.

    A mean of `match_at` (if None 0.5, where all lie from 0 to 1) makes a match. Raises BadInput for a file that cannot
    be used, also when none of its ids is known.
    """
    names, columns, values = _read(path)
    if match_at is None:
        outside = values[(values < 0) | (values > 1)]
        if len(outside):
            raise BadInput(
                f"{path}: match holds grades up to {values.max():g}, not 0 and 1; say from which grade on two items "
                "belong together: --match-at GRADE."
            )
        match_at = 0.5
    anchor, gallery = sides(direction)
    if anchor == gallery and names != _NAMES[0]:
        raise BadInput(
            f"{path}: found the columns {names[0]} and {names[1]}, but {direction} compares {anchor}s with {anchor}s; "
            "give the columns anchor_id and negative_id, or calibrate i2t or t2i."
        )
    order = columns if names == _NAMES[0] or anchor == "image" else columns[::-1]
    rows = [pairs.ids(side).rows(ids) for side, ids in zip((anchor, gallery), order, strict=True)]
    known = (rows[0] >= 0) & (rows[1] >= 0)
    if not known.any():
        raise BadInput(
            f"{path}: no row names two items of {pairs.name} (the first: {names[0]} {columns[0][0]}, {names[1]} "
            f"{columns[1][0]}; direction {direction}); give judgements of this data."
        )
    size = len(pairs.ids(gallery))
    codes, which = np.unique(rows[0][known] * size + rows[1][known], return_inverse=True)
    mean = np.bincount(which, weights=values[known]) / np.bincount(which)
    anchors, negatives = codes // size, codes % size
    offsets, positives = pairs.positives_of(direction)
    own = np.isin(codes, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * size + positives)
    notes = (
        [f"{(~known).sum()} of {len(known)} judgements name other items and were left out"] if not known.all() else []
    )
    if own.any():
        notes.append(f"{own.sum()} judged pairs are positives already and were left out")
    return Judged(anchors[~own], negatives[~own], mean[~own] >= match_at, tuple(notes))


def _read(path: Path) -> tuple[tuple[str, str], list[Any], Reals]:
    """(names of the two id columns, their ids as pyarrow arrays, match). Raises BadInput."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    wanted = "give the columns anchor_id and negative_id, or image_id and text_id, and match"
    if path.suffix not in _SUFFIXES:
        raise BadInput(f"{path}: give judgements as {', '.join(_SUFFIXES)}; {wanted}.")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; {wanted}.")
    every = sorted({name for both in _NAMES for name in both} | {"match"})
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(every, pa.string())),
            )
        names = next((both for both in _NAMES if set(both) <= set(table.column_names)), None)
        if names is None or "match" not in table.column_names:
            raise BadInput(f"{path}: found the columns {', '.join(table.column_names) or 'none'}; {wanted}.")
        columns = [pc.cast(table[name].combine_chunks(), pa.string()) for name in (*names, "match")]
    except (pa.ArrowException, OSError) as broken:
        what = str(broken).partition("\n")[0]
        raise BadInput(f"{path}: cannot be read as judgements ({what}); {wanted}.") from broken
    if not len(columns[0]):
        raise BadInput(f"{path}: no row; {wanted}.")
    values = np.array([_number(text) for text in columns[2].to_pylist()])
    broken_rows = np.flatnonzero(~np.isfinite(values))
    if len(broken_rows):
        at = int(broken_rows[0])
        raise BadInput(
            f"{path}: row {at + 1} below the head has match {columns[2][at].as_py()!r}; write 0, 1 or a grade in every "
            "row, and leave out what nobody judged."
        )
    if any(column.null_count or pc.any(pc.equal(column, "")).as_py() for column in columns[:2]):
        raise BadInput(f"{path}: a row lacks its {names[0]} or {names[1]}; give both in every row.")
    return names, columns[:2], values


def _number(text: str | None) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        return words.get(str(text).lower(), float("nan")) if str(text).lower() in words else float(str(text))
    except ValueError:
        return float("nan")


def weights(ranks: Ints, candidates: Ints) -> Reals:
    """(n,) how many candidates a judged pair of this rank stands for; `candidates` (width,) are there at every rank.

    Bands are ranks 0, 1, 2, 3, 4-5, 6-8, 9-12, ..., each half as deep again, joined with the next until _LEAST judged
    pairs are in each.
    """
    if not len(ranks):
        return np.empty(0)
    edges = [0]
    while (edge := max(edges[-1] + 1, edges[-1] * 3 // 2)) < len(candidates):
        edges.append(edge)
    held = np.histogram(ranks, [*edges, len(candidates)])[0]
    starts, count = [0], 0
    for start, many in zip(edges, held.tolist(), strict=True):
        if count >= _LEAST:
            starts.append(start)
            count = 0
        count += many
    if count < _LEAST and len(starts) > 1:
        starts.pop()
    band = np.searchsorted(starts, ranks, side="right") - 1
    there = np.add.reduceat(candidates, starts)
    return np.asarray((there / np.maximum(np.bincount(band, minlength=len(starts)), 1))[band], dtype=np.float64)


def estimate(match: npt.NDArray[np.bool_], weight: Reals, anchors: Ints, negatives: Ints) -> Share | None:
    """The weighted share of `match` (n,) with its interval, see the module; None where nothing was judged."""
    if not len(match) or not weight.sum():
        return None
    share = float(weight @ match / weight.sum())
    residual = weight * (match - share) / weight.sum()
    units = [np.unique(labels, return_inverse=True)[1] for labels in (anchors, negatives)]
    numbers = [int(unit.max()) + 1 for unit in units]
    variance = max(_variance(residual, unit, number) for unit, number in zip(units, numbers, strict=True))
    kish = float(weight.sum() ** 2 / (weight**2).sum())
    fewest = min(numbers)
    effective = min(share * (1 - share) / variance, kish) if variance > 0 and 0 < share < 1 else min(kish, fewest)
    low, high = _wilson(share, effective, _student(fewest - 1))
    return Share(share, low, high, len(match), numbers[0], effective)


def _variance(residual: Reals, unit: Ints, number: int) -> float:
    """Of a share, from the sums of its residuals over the units."""
    if number < 2:
        return 0.0
    return float((np.bincount(unit, weights=residual, minlength=number) ** 2).sum()) * number / (number - 1)


def _wilson(share: float, effective: float, z: float) -> tuple[float, float]:
    centre = share + z * z / (2 * effective)
    half = z * np.sqrt(share * (1 - share) / effective + (z / (2 * effective)) ** 2)
    scale = 1 + z * z / effective
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))


def _student(freedom: int) -> float:
    """97.5% point of Student's t. Abramowitz and Stegun, 26.7.5."""
    if freedom < 1:
        return _T[1]
    if freedom in _T:
        return _T[freedom]
    z = 1.959964
    return float(
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )
