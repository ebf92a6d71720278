"""The comparison as a picture: rsum with intervals, time per step, contributing negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.compare.results import Summary
from trainer.plots import COLOURS

__all__ = ["plot_comparison"]


def plot_comparison(summaries: Sequence[Summary], rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """One line per objective, best test rsum on top: every seed as a dot, the mean with its 95% interval; then time
    per step, and contributing negatives per query (in the batch and, hollow, offline)."""
    from matplotlib.figure import Figure

    order = sorted(summaries, key=lambda found: found.rsum.mean)
    places = range(len(order))
    figure = Figure(figsize=(12, 1.6 + 0.38 * len(order)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[3, 1.2, 1.6])
    reference = next((found for found in summaries if found.against is None), summaries[0])
    for place, found in zip(places, order, strict=True):
        seeds = [row["test_rsum"] for row in rows if row["objective"] == found.label]
        colour = COLOURS[1] if found.label == reference.label else COLOURS[0]
        half = 0 if math.isinf(found.rsum.half) else found.rsum.half
        left.errorbar(found.rsum.mean, place, xerr=half, color=colour, fmt="D", markersize=5, capsize=3, linewidth=1.4)
        left.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.35, markersize=4)
        middle.barh(place, found.milliseconds or 0, color=colour, alpha=0.8)
        for counts, shift, marker, filled in ((found.online, 0.12, "o", colour), (found.offline, -0.12, "D", "white")):
            if counts:
                mean = sum(counts.values()) / len(counts)
                right.plot(mean, place + shift, marker, color=colour, markerfacecolor=filled, markersize=6)
    left.axvline(reference.rsum.mean, color=COLOURS[1], linewidth=0.8, linestyle=":")
    # A label is text: a dollar in it starts no formula.
    left.set_yticks(list(places), [found.label for found in order], parse_math=False)
    left.set_xlabel("test rsum\n(dots: seeds; mean and 95% interval over seeds)")
    middle.set_xlabel("milliseconds\nper step")
    right.set_xscale("symlog", linthresh=1)
    right.set_xlabel("contributing negatives per query\n(weight > 0.01; hollow: offline)")
    most = max((count for found in order for count in (*found.online.values(), *found.offline.values())), default=1)
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 30, 100) if tick <= 2 * most]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_xlim(0, 1.5 * max(most, 1))
    for axis in (left, middle, right):
        axis.grid(True, axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=150)
