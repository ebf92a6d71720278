"""The plot of counts, and colours for any; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["COLOURS", "plot_counts"]

# Paul Tol's "bright" scheme: told apart by colour-blind readers as well.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = "os^D"
TITLES = {"i2t": "image queries", "t2i": "text queries"}


def plot_counts(rows: Sequence[Mapping[str, Any]], path: Path, *, batch_size: int, title: str) -> None:
    """Contributing negatives per query over the threshold, one panel per direction, one line per label.

    Solid: in the batch; dashed: offline. A band is one standard deviation over batches. Thresholds of 0 are drawn at
    the left edge. The vertical line is chance level, 1 / `batch_size`.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(row["label"] for row in rows))
    directions = [d for d in ("i2t", "t2i") if any(row["direction"] == d for row in rows)]
    figure = Figure(figsize=(5.2 * len(directions), 4.2), layout="constrained")
    axes = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    positive = sorted({row["threshold"] for row in rows if row["threshold"] > 0})
    left = positive[0] / 3 if positive else 0.01
    for axis, direction in zip(axes, directions, strict=True):
        for number, label in enumerate(labels):
            # Where colours begin again, markers tell lines apart.
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            for negatives, style in (("online", "-"), ("offline", "--")):
                found = sorted(
                    (max(row["threshold"], left), row["share"], row["share_std"])
                    for row in rows
                    if (row["label"], row["direction"], row["negatives"]) == (label, direction, negatives)
                )
                if not found:
                    continue
                x, y, spread = np.array(found).T
                name = f"{label}, offline" if negatives == "offline" else label
                axis.plot(x, y, style, color=colour, label=name, marker=marker, markersize=3, linewidth=1.6)
                axis.fill_between(x, np.maximum(y - spread, 0), y + spread, color=colour, alpha=0.15, linewidth=0)
        axis.axvline(1 / batch_size, color="#888888", linewidth=0.8, linestyle=":")
        there = axis.get_xaxis_transform()
        axis.text(1 / batch_size, 0.99, " chance", transform=there, va="top", fontsize=8, color="#666666")
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("weight a negative must exceed, in its loss's unit (left edge: any)")
        axis.set_title(TITLES[direction], fontsize=11)
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("contributing negatives per query")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=150)
