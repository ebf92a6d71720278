"""The page people look at: one HTML file with the figures of the rounds and what was mined for its anchors.

    view.py          what a page is made from
    overview.py      table of rounds, settings: text for the template
    charts.py        what the charts show
    listing.py       which anchors; suspicion.py how likely a negative is to be a false one
    browser.py       columns of numbers about these anchors; packing.py puts them into one string
    embedding_map.py where items lie
    pictures.py      thumbnails
    document.py      the template filled, with style, scripts and Plotly in it
    of_run.py        the view of a run folder

Everything of the dataset is data, never markup: see `document.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, Side, sides
from pipelines.report import document, listing, overview, pictures
from pipelines.report.browser import Browser, browser
from pipelines.report.charts import charts, score_curves
from pipelines.report.embedding_map import project
from pipelines.report.packing import pack
from pipelines.report.view import DIRECTIONS, RoundView, RunView

__all__ = ["ANCHORS", "PAGE", "RoundView", "RunView", "render"]

PAGE = "report.html"  # its name in a run folder
ANCHORS = 100_000  # of each direction
LARGEST = 19_500_000  # bytes of a page
_CELLS = 1_200_000  # negatives told of over all anchors, of one round; and of the detailed ones over all rounds
_POINTS = 1500  # of the map, each side


def render(run: RunView, *, num_anchors: int = ANCHORS, num_ranks: int = 18, served: bool = False) -> str:
    """The page as HTML text, the same for the same arguments; it needs no network and may be opened from disk.

    Of every direction it lists `num_anchors` anchors, the more suspicious half of them and others drawn by the seed;
    fewer where they would make a page larger than 20 MB. As many of them as fit are told of with `num_ranks` negatives
    in every round. `served`: for `pipelines serve`, which saves verdicts. Raises BadInput without a round, for a round
    given twice, and for a table of another dataset.
    """
    numbers = sorted(view.round for view in run.rounds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise BadInput(f"report: rounds {numbers} were given; a page needs one round or more, each once.")
    run = RunView(**{**vars(run), "rounds": sorted(run.rounds, key=lambda view: view.round)})
    listing.check_tables(run.dataset.pairs, run.rounds)
    while True:
        page = _page(run, num_anchors, num_ranks, served)
        if len(page.encode()) <= LARGEST or num_anchors <= 1:
            return page
        num_anchors = max(1, min(num_anchors, max(map(len, _sides(run)))) // 2)


def _sides(run: RunView) -> list[Any]:
    return [run.dataset.pairs.image_ids, run.dataset.pairs.text_ids]


def _page(run: RunView, num_anchors: int, num_ranks: int, served: bool) -> str:
    mined = max((len(run.tables(direction)) for direction in DIRECTIONS), default=0)
    detailed = _CELLS // (2 * max(mined, 1) * num_ranks)
    found = {direction: listing.listing(run, direction, num_anchors, detailed, num_ranks) for direction in DIRECTIONS}
    listings: dict[Direction, listing.Listing] = {d: one for d, one in found.items() if one is not None}
    made = browser(run, listings, num_ranks, _CELLS)
    images = pictures.thumbnails(run.dataset.images, made.pictures)
    item = {row: at for at, row in enumerate(made.rows["image"].tolist())}
    values = {
        "run": run.dataset.pairs.fingerprint[:16],
        "rounds": [view.round for view in run.rounds],
        "served": served,
        "looked": bool(run.vectors),
        "bands": _step(made),
        **made.values,
    }
    arrays, held = _map(run, made)
    return document.fill(
        served=served,
        packed=pack({**made.arrays, **arrays}, values),
        pictures={str(item[row]): encoded for row, encoded in images.items()},
        charts={"overview": charts(run.rounds), "scores": score_curves(run)},
        title=run.title,
        dataset=run.dataset,
        rounds=run.rounds,
        groups=overview.columns(run.rounds),
        figures=_figures(run),
        settings=overview.flatten(run.settings),
        listed={direction: len(one.rows) for direction, one in listings.items()},
        sizes={direction: len(run.dataset.pairs.ids(sides(direction)[0])) for direction in DIRECTIONS},
        directions=list(listings),
        looked=bool(run.vectors),
        held=held,
    )


def _map(run: RunView, made: Browser) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Coordinates of some items as arrays; the share of the variance that they show."""
    if not run.vectors or not len(made.rows.get("image", ())):
        return {}, 0.0
    random = np.random.default_rng(run.seed)
    items: dict[Side, npt.NDArray[np.int64]] = {}
    for side, rows in made.rows.items():
        size = len(rows)
        items[side] = np.sort(random.choice(size, min(size, _POINTS), replace=False))
    found, held = project(run.vectors, {side: made.rows[side][at] for side, at in items.items()}, run.seed)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for side, at in items.items():
        arrays[f"map.{side}"] = at.astype(np.int32)
        arrays[f"map.{side}.xy"] = found[side]
    return arrays, held


def _figures(run: RunView) -> list[tuple[str, str, str]]:
    """[(label, figure, note)]: what the last round came to."""
    found = []
    last, first = run.rounds[-1], run.rounds[0]
    for split in ("test", "dev"):
        now, then = (view.metrics.get(split, {}).get("rsum") for view in (last, first))
        if now is not None:
            note = f"round {last.round}"
            if then is not None and first is not last:
                note += f", {overview.number(now - then, 1, signed=True)} since round {first.round}"
            found.append((f"{split} rsum", overview.number(now, 1), note))
    for direction, name in (("i2t", "Images"), ("t2i", "Captions")):
        of_direction = run.tables(direction)  # type: ignore[arg-type]  # one of the two
        if of_direction:
            number, table = of_direction[-1]
            share = overview.number(100 * listing.share_outscored(table), 0) + " %"
            found.append((f"{name} outscored", share, f"a mined negative beats their lowest positive, round {number}"))
    return found


def _step(made: Browser) -> float:
    """Width of a colour band of hardness: 1, 2 or 5 times a power of ten, three bands a side reaching 80%."""
    margins = [made.arrays[f"{d}.margin"] for d in DIRECTIONS if f"{d}.margin" in made.arrays]
    shown = np.abs(np.concatenate(margins)) if margins else np.empty(0)
    shown = shown[shown < 1e8]
    target = float(np.quantile(shown, 0.8)) / 3 if len(shown) else 0.0
    if not np.isfinite(target) or target <= 0:
        return 0.1
    power = 10.0 ** np.floor(np.log10(target))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= target))
