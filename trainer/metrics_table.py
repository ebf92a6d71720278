"""Measured figures as people read them: lines for a terminal, a row for a LaTeX table."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.evaluate import CUTOFFS, EXTENDED, METRICS

__all__ = ["extended_lines", "latex_row", "lines"]

_NAMES = {"i2t": "image to text", "t2i": "text to image"}
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def lines(measured: Mapping[str, float]) -> list[str]:
    """R@K and ranks of both directions, then rsum."""
    found = []
    for direction, name in _NAMES.items():
        median, mean = measured[f"{direction}_median_rank"], measured[f"{direction}_mean_rank"]
        found.append(f"{name}  {_recalls(measured, f'{direction}_r')}  median rank {median:g}  mean rank {mean:.1f}")
    return [*found, f"rsum {measured['rsum']:.1f}"]


def extended_lines(measured: Mapping[str, float]) -> list[str]:
    """mAP@R, R-precision and R@K over extended positives."""
    return [
        f"{name}  mAP@R {measured[f'{direction}_map_at_r']:5.1f}  "
        f"R-precision {measured[f'{direction}_r_precision']:5.1f}  {_recalls(measured, f'{direction}_extended_r')}"
        for direction, name in _NAMES.items()
    ]


def latex_row(name: str, measured: Mapping[str, float]) -> str:
    r"""`name & R@1 & R@5 & R@10 & R@1 & R@5 & R@10 & rsum \\`, image to text first; then `EXTENDED`, where measured."""
    shown = [*METRICS[: 2 * len(CUTOFFS) + 1], *(key for key in EXTENDED if key in measured)]
    cells = ["".join(_LATEX.get(character, character) for character in name)]
    return " & ".join([*cells, *(f"{measured[key]:.1f}" for key in shown)]) + r" \\"


def _recalls(measured: Mapping[str, float], prefix: str) -> str:
    return "  ".join(f"R@{cutoff} {measured[f'{prefix}{cutoff}']:5.1f}" for cutoff in CUTOFFS)
