"""The page people look at: one HTML file with the figures of the rounds and what was mined for some anchors.

    overview.py      table of rounds, charts, settings: computed here, written by the template
    anchors.py       which anchors, their positives and negatives: plain values, written as JSON
    pictures.py      thumbnails as data URIs, each once
    page.html.j2     the document; page.css and page.js go into it

The document allows its own style and script by their hashes, pictures as data, and nothing else: no network at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miner.artifacts.errors import BadInput
from miner.artifacts.pairs import Direction, sides
from pipelines.report import anchors, overview, pictures

if TYPE_CHECKING:
    from miner.artifacts.negatives import NegativeTable
    from trainer.data import Dataset

__all__ = ["RoundView", "render"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class RoundView:
    """One round as the page shows it.

    `metrics`: split -> {"rsum", "i2t_r1", ...} in percent. `tables`: what the round trained on, by direction, none in
    a round without mining; `hardness` (mean over the table, a difference of similarities) and `overlap` (share of
    the previous round's negatives found again, 0 to 1) likewise. `seconds`: stage -> wall clock. `contributing`, if it
    was asked for ([analyze]): negatives per query that contribute to the loss, see `pipelines.jobs.analyze.counted`.
    `best`: no round has a higher dev rsum.
    """

    round: int
    metrics: dict[str, dict[str, float]]
    tables: dict[Direction, NegativeTable]
    hardness: dict[Direction, float]
    overlap: dict[Direction, float]
    seconds: dict[str, float]
    contributing: dict[str, float] = field(default_factory=dict)
    best: bool = False


def render(
    dataset: Dataset,
    rounds: Sequence[RoundView],
    *,
    title: str,
    settings: Mapping[str, Any],
    num_anchors: int = 48,
    num_ranks: int = 18,
    seed: int = 0,
) -> str:
    """The page as HTML text, the same for the same arguments; it needs no network and may be opened from disk.

    `dataset` is the split the tables were mined on. Of every direction it shows `num_anchors` anchors drawn by
    `seed`, and the hardest of the last table, the same ones in every round, with their first `num_ranks` negatives.
    Raises BadInput without a round, for a round given twice, and for a table of another dataset.
    """
    ordered = sorted(rounds, key=lambda view: view.round)
    numbers = [view.round for view in ordered]
    if not numbers or len(set(numbers)) < len(numbers):
        raise BadInput(f"report: rounds {numbers} were given; a page needs one round or more, each once.")
    pairs = dataset.pairs
    anchors.check_tables(pairs, [(view.round, view.tables) for view in ordered])
    tables = {
        direction: [(view.round, view.tables[direction]) for view in ordered if direction in view.tables]
        for direction in anchors.DIRECTIONS
    }
    browsed: dict[Direction, list[dict[str, Any]]] = {
        direction: anchors.browse(
            pairs, direction, tables[direction], num_anchors=num_anchors, num_ranks=num_ranks, seed=seed
        )
        for direction in anchors.DIRECTIONS
    }
    things = anchors.items(pairs, browsed)
    for row, uri in pictures.data_uris(dataset.images, things["image"]).items():
        things["image"][row]["src"] = uri
    step = anchors.hardness_step(browsed)
    data = {
        "rounds": numbers,
        "directions": {direction: {"anchors": browsed[direction]} for direction in anchors.DIRECTIONS},
        "images": things["image"],
        "texts": things["text"],
        "step": step,
    }
    return _fill(
        title=title,
        dataset=dataset,
        rounds=ordered,
        groups=overview.columns(
            [view.metrics for view in ordered],
            [view.hardness for view in ordered],
            [view.overlap for view in ordered],
            [view.seconds for view in ordered],
        ),
        charts=_charts(ordered),
        figures=_figures(ordered, tables),
        settings=overview.flatten(settings),
        sizes={direction: len(pairs.ids(sides(direction)[0])) for direction in anchors.DIRECTIONS},
        browsed=browsed,
        bands=_bands(step),
        num_ranks=num_ranks,
        data=data,
    )


def _figures(
    rounds: Sequence[RoundView], tables: Mapping[Direction, Sequence[tuple[int, NegativeTable]]]
) -> list[tuple[str, str, str]]:
    """[(label, figure, note)]: what the last round came to."""
    found = []
    last, first = rounds[-1], rounds[0]
    for split in ("test", "dev"):
        now, then = (view.metrics.get(split, {}).get("rsum") for view in (last, first))
        if now is not None:
            note = f"round {last.round}"
            if then is not None and first is not last:
                note += f", {overview.number(now - then, 1, signed=True)} since round {first.round}"
            found.append((f"{split} rsum", overview.number(now, 1), note))
    for direction, name in (("i2t", "Images"), ("t2i", "Captions")):
        of_direction = tables[direction]  # type: ignore[index]
        if of_direction:
            number, table = of_direction[-1]
            share = overview.number(100 * anchors.share_outscored(table), 0) + " %"
            found.append((f"{name} outscored", share, f"a mined negative beats their lowest positive, round {number}"))
    return found


def _charts(rounds: Sequence[RoundView]) -> list[overview.Chart]:
    numbers = [view.round for view in rounds]
    rsum = [
        overview.Series(split, style, tuple(view.metrics.get(split, {}).get("rsum") for view in rounds))
        for split, style in (("test", "first"), ("dev", "second"))
    ]
    hardness = [
        overview.Series(name, style, tuple(view.hardness.get(direction) for view in rounds))
        for direction, name, style in _HARDNESS_LINES
    ]
    made = [
        overview.chart("rsum by round", numbers, rsum, 1),
        overview.chart("Mean hardness of the mined negatives by round", numbers, hardness, 3, signed=True),
    ]
    return [chart for chart in made if chart.lines]


_HARDNESS_LINES: tuple[tuple[Direction, str, str], ...] = (
    ("i2t", "image → text", "first"),
    ("t2i", "text → image", "second"),
)


def _bands(step: float) -> list[tuple[str, str]]:
    """[(class, text)] of the colour bands of hardness, easiest first; the classes are those page.js gives."""
    decimals = max(0, -int(f"{step:e}".partition("e")[2]))
    one, two = overview.number(step, decimals), overview.number(2 * step, decimals)
    return [
        ("below-2", f"below −{two}"),
        ("below-1", f"−{two} to −{one}"),
        ("below-0", f"−{one} to 0"),
        ("above-0", f"0 to {one}"),
        ("above-1", f"{one} to {two}"),
        ("above-2", f"above {two}"),
    ]


def _fill(*, data: Mapping[str, Any], **values: Any) -> str:
    import jinja2
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_FOLDER / name).read_text(encoding="utf8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        **values,
        style=Markup(style),  # our own two files: nothing of the dataset is in them
        script=Markup(script),
        policy=policy,
        # < > & ' become \u003c ..., so that no caption can end the script element.
        data=htmlsafe_json_dumps(
            data, dumps=json.dumps, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        ),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
