"""Do filters take out negatives that people say are none? Mined on the Flickr8k test, judged by people (Hodosh 2013).

    trainer fit --data flickr8k/ --model vse_inf:dim=256 --epochs 10 --lr 1e-3 --out checkpoints/vse
    trainer encode --data flickr8k/ --split test --checkpoint checkpoints/vse --out vectors/vse
    python benchmarks/false_negatives.py --judgements ../shared/data/flickr8k --model VSE vectors/vse flickr8k/

Of the candidates that people judged (51,323 pairs of the 1,000 test images with one caption each; a pair fits from a
mean grade of 3 or two thirds yes on, see `trainer.judgements.flickr8k`), the share that fits is the share of false
negatives. For every model, direction and filter it says

    kept         negatives / (negatives + candidates dropped before the k-th of them)
    hardness     mean of score - lowest positive, of all negatives
    fit          share of false negatives among the judged: in the k nearest, and in the k that the filter leaves
    ratio        filtered / raw
    = hardness   the same against raw candidates as hard as the filtered: k in a row, from the rank on from which their
                 mean hardness is that of the filtered
    = intervals  the same against all that the filter looked at, kept or dropped, reweighted so that as many of the
                 judged lie in each of 20 intervals of hardness

with 95% intervals from a bootstrap over images: a caption as an anchor goes with its image. A rule that looks at the
score alone can only move along the raw curve: at equal hardness its ratio is 1 or more.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import numpy.typing as npt

from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
from miner.artifacts.manifest import Draft
from miner.artifacts.pairs import Direction, Pairs, Side, sides
from miner.artifacts.store import LocalStore
from miner.filters import DEFAULT, chosen
from miner.folder import open_folder
from miner.index import build
from miner.nearest import mine, mine_block
from miner.scores import unit
from miner.select import Selection
from trainer.data import load
from trainer.data._spec import spoken
from trainer.judgements import flickr8k

DEPTH = 8  # raw candidates looked at, times k
BINS = 20
FILTERS = (
    "default",
    "look-alike:share=0.25,images=0",
    "look-alike:share=0.25,texts=0",
    "near-embedding:cosine=0.6,side=text",
    "near-embedding:cosine=0.8,side=text",
    "relative-margin:margin=0.05",
    "percentile:above=75,among=negatives",
    "percentile:above=75,of=hardness,among=negatives",
    "range-min:skip=10",
    "agreement:within=10,drop=mutual",
    "agreement:within=50,drop=mutual",
    "hub-cap:most=400",
    "same-text",
    "near-text:jaccard=0.3",
)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One model's test set in one direction: `fits` (images, texts) is 1 for a pair that fits, 0 not, -1 not judged."""

    pairs: Pairs
    vectors: dict[Side, Array]
    candidates: dict[str, Candidates]
    fits: Array
    direction: Direction

    def verdicts(self, anchors: Array, items: Array) -> Array:
        """1, 0 or -1 of anchors (a,) with items (a, n), -1 for no item."""
        images, texts = (anchors[:, None], items) if self.direction == "i2t" else (items, anchors[:, None])
        return np.where(items >= 0, self.fits[images, texts], -1)

    def images(self, anchors: Array) -> Array:
        """The image that an anchor belongs to: what is drawn in the bootstrap."""
        if self.direction == "i2t":
            return anchors
        offsets, rows = self.pairs.positives("text")
        return rows[offsets[anchors]]


@dataclass(frozen=True)
class Pool:
    """Hardness (anchors, n) and verdicts (anchors, n) of negatives, nan and -1 where there are fewer."""

    anchors: Array
    hardness: Array
    verdicts: Array

    def part(self, start: int, stop: int) -> Pool:
        return Pool(self.anchors, self.hardness[:, start:stop], self.verdicts[:, start:stop])


def judged(pairs: Pairs, folder: Path) -> Array:
    """(images, texts): what people said of the pairs that do not belong together, as `Task.fits`."""
    config = flickr8k.Config.model_validate({"path": folder})
    corpus = flickr8k._by_row(config)
    images = flickr8k._images(pairs, corpus, folder)
    texts = flickr8k._texts(pairs, corpus, {row: name for name, row in images.items()})
    fits = np.full((pairs.num_images, pairs.num_texts), -1, dtype=np.int8)
    for image, caption, positive in corpus.verdicts:
        if image in images and caption in texts:
            at = images[image], texts[caption]
            fits[at] = max(fits[at], int(positive))
    fits[pairs.image_rows, pairs.text_rows] = -1
    return fits


def tasks(vectors: Path, data: str, judgements: Path, work: Path, num: int) -> dict[Direction, Task]:
    """Both directions of a model: its candidates searched, its captions matched with the judged ones."""
    opened = open_folder(vectors)
    known = load(spoken(data), "test").pairs
    texts = known.text_ids.rows(opened.pairs.text_ids.arrow)
    pairs = Pairs(
        opened.pairs.image_ids,
        opened.pairs.text_ids,
        opened.pairs.image_rows,
        opened.pairs.text_rows,
        tuple(known.texts[row] for row in texts),
        name=str(vectors),
    )
    fits = judged(pairs, judgements)
    made: dict[Side, Array] = {side: unit(opened.vectors(side, "ip")) for side in ("image", "text")}
    candidates: dict[str, Candidates] = {}
    for direction in get_args(Direction):
        anchors, gallery = (made[side] for side in sides(direction))
        draft = Draft(LocalStore(work), direction, CANDIDATES, {})
        blocks = mine(anchors, build("flat", gallery), gallery, pairs, direction, num)
        for _ in write_candidates(draft, blocks, pairs, direction, num, {"metric": "cosine"}):
            pass
        candidates[direction] = Candidates.open(work / direction, pairs)
    return {direction: Task(pairs, made, candidates, fits, direction) for direction in get_args(Direction)}


def raw_pool(task: Task) -> Pool:
    blocks = list(task.candidates[task.direction].blocks())
    anchors = np.concatenate([block.anchor_rows for block in blocks])
    items = np.concatenate([block.negatives for block in blocks])
    hardness = np.concatenate([block.scores - block.lowest_positive[:, None] for block in blocks])
    return Pool(anchors, hardness, task.verdicts(anchors, items))


def filtered_pool(task: Task, rules: tuple[str, ...], k: int) -> tuple[Pool, Array]:
    """What a filter leaves, and how many candidates of every anchor it looked at."""
    anchors, gallery = (task.vectors[side] for side in sides(task.direction))
    index = build("flat", gallery)
    opposite = "t2i" if task.direction == "i2t" else "i2t"
    selection = Selection(
        task.candidates[task.direction],
        task.pairs,
        chosen(rules),
        k,
        vectors=task.vectors,
        opposite=task.candidates[opposite],
        deepen=lambda rows, depth: mine_block(anchors[rows], index, gallery, task.pairs, task.direction, depth, rows),
    )
    parts = list(selection.blocks())
    blocks = [part.negatives for part in parts]
    rows = np.concatenate([block.anchor_rows for block in blocks])
    items = np.concatenate([block.negatives for block in blocks])
    hardness = np.concatenate([block.scores - block.lowest_positive[:, None] for block in blocks])
    lost = np.bincount(np.concatenate([part.dropped.anchors for part in parts]), minlength=len(rows))
    return Pool(rows, hardness, task.verdicts(rows, items)), (items >= 0).sum(1) + lost[rows]


def sums(pool: Pool) -> tuple[Array, Array]:
    """(fit, judged) of every anchor."""
    return (pool.verdicts == 1).sum(1), (pool.verdicts >= 0).sum(1)


def by_bin(pool: Pool, edges: Array) -> tuple[Array, Array]:
    """(anchors, bins) fit and judged by hardness."""
    found = np.searchsorted(edges, pool.hardness)
    fit, seen = (np.zeros((len(pool.anchors), len(edges) + 1)) for _ in range(2))
    for number in range(len(edges) + 1):
        here = pool.verdicts * (found == number) + (found != number) * -1
        fit[:, number], seen[:, number] = (here == 1).sum(1), (here >= 0).sum(1)
    return fit, seen


def equally_hard(raw: Pool, hardness: float, k: int) -> tuple[Array, Array]:
    """(fit, judged) of every anchor among raw candidates from the rank on where their mean hardness is this one."""
    steps = raw.hardness.shape[1] - k
    means = np.array([np.nanmean(raw.hardness[:, start : start + k]) for start in range(steps + 1)])
    place = float(np.interp(-hardness, -means, np.arange(steps + 1)))
    low = int(place)
    first, second = (sums(raw.part(start, start + k)) for start in (low, min(low + 1, steps)))
    fit, seen = ((1 - place + low) * a + (place - low) * b for a, b in zip(first, second, strict=True))
    return fit, seen


def compared(task: Task, raw: Pool, pool: Pool, looked: Array, k: int, draws: int) -> dict[str, Any]:
    """Ratios with intervals; `looked` (anchors,) says how many of its candidates the filter has looked at."""
    nearest = raw.part(0, k)
    hardness = float(np.nanmean(pool.hardness))
    seen_by_it = np.arange(raw.hardness.shape[1]) < looked[:, None]
    looked_at = Pool(raw.anchors, raw.hardness, np.where(seen_by_it, raw.verdicts, -1))
    edges = np.quantile(raw.hardness[looked_at.verdicts >= 0], np.arange(1, BINS) / BINS)
    units = task.images(raw.anchors)
    number = int(task.pairs.num_images)

    def per_image(values: Array) -> Array:
        summed = np.zeros((number, *values.shape[1:]))
        np.add.at(summed, units, values)
        return summed

    assert np.array_equal(raw.anchors, pool.anchors)
    mine_, top, window = ([per_image(each) for each in found] for found in (
        sums(pool), sums(nearest), equally_hard(raw, hardness, k)
    ))  # fmt: skip
    binned, raw_binned = ([per_image(each) for each in by_bin(given, edges)] for given in (pool, looked_at))

    def shares(rows: Array) -> Array:
        fit, seen = (each[rows].sum(0) for each in mine_)
        in_bin, raw_fit, raw_seen = (each[rows].sum(0) for each in (binned[1], *raw_binned))
        expected = (in_bin * raw_fit / np.maximum(raw_seen, 1)).sum() / max(in_bin.sum(), 1)
        raw_share, as_hard = (each[0][rows].sum() / max(each[1][rows].sum(), 1) for each in (top, window))
        share = fit / max(seen, 1)
        return np.array([raw_share, share, share / raw_share, share / as_hard, share / expected])

    rng = np.random.default_rng(0)
    drawn = np.array([shares(rng.integers(0, number, number)) for _ in range(draws)])
    names = ("raw", "filtered", "ratio", "ratio_at_equal_hardness", "ratio_within_intervals")
    intervals = np.quantile(drawn, [0.025, 0.975], axis=0).T
    return {
        "hardness_raw": float(np.nanmean(nearest.hardness)),
        "hardness": hardness,
        "judged_raw": int(top[1].sum()),
        "judged": int(mine_[1].sum()),
        **{
            name: {"value": float(value), "interval": [float(low), float(high)]}
            for name, value, (low, high) in zip(names, shares(np.arange(number)), intervals, strict=True)
        },
    }


def shown(one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['value']:.2f} [{low:.2f}, {high:.2f}]"


@click.command()
@click.option("--judgements", required=True, type=click.Path(path_type=Path), help="Folder of human_judgments.tsv.")
@click.option(
    "--model", "models", required=True, multiple=True, nargs=3, metavar="NAME VECTORS DATA",
    help="A name, the vectors of the Flickr8k test, and the data they were made from, as `trainer --data` takes it.",
)  # fmt: skip
@click.option("--filter", "filters", multiple=True, metavar="RULES", help="With spaces between. [default: many]")
@click.option("--k", default=50, show_default=True)
@click.option("--draws", default=1000, show_default=True, help="Bootstrap samples.")
@click.option("--out", type=click.Path(path_type=Path), help="File for all figures, JSON.")
def main(
    judgements: Path,
    models: tuple[tuple[str, str, str], ...],
    filters: tuple[str, ...],
    k: int,
    draws: int,
    out: Path | None,
) -> None:
    results: dict[str, Any] = {"k": k, "default": list(DEFAULT), "models": {}}
    click.echo(f"default: {' '.join(DEFAULT)}; k = {k}; share of false negatives among the judged, 95% intervals\n")
    for name, vectors, data in models:
        results["models"][name] = {}
        with tempfile.TemporaryDirectory() as work:
            found = tasks(Path(vectors), data, judgements, Path(work), DEPTH * k)
            for direction, task in found.items():
                raw = raw_pool(task)
                table = results["models"][name][direction] = {}
                for said in filters or FILTERS:
                    pool, looked = filtered_pool(task, tuple(said.split()), k)
                    counts = (~np.isnan(pool.hardness)).sum(1)
                    kept, short = float(counts.sum() / looked.sum()), int((counts < k).sum())
                    one = {"kept": kept, "short": short, **compared(task, raw, pool, looked, k, draws)}
                    table[said] = one
                    if len(table) == 1:
                        click.echo(f"{name}, {direction}: {one['judged_raw']:,} of the {k} nearest judged")
                        heads = ("fit", "ratio", "= hardness", "= intervals")
                        click.echo(f"{'filter':48}  kept  hardness" + "".join(f"  {head:>17}" for head in heads))
                        click.echo(f"{'raw':48}  100%  {one['hardness_raw']:+8.3f}  {shown(one['raw']):>17}")
                    ratios = ("filtered", "ratio", "ratio_at_equal_hardness", "ratio_within_intervals")
                    cells = "".join(f"  {shown(one[each]):>17}" for each in ratios)
                    few = f"  ({short:,} with fewer than {k})" if short else ""
                    click.echo(f"{said:48}  {kept:4.0%}  {one['hardness']:+8.3f}{cells}{few}")
                click.echo()
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
