"""Where items lie: the two directions in which the vectors of both sides differ most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from miner.artifacts.pairs import Side

__all__ = ["project"]

Reals = npt.NDArray[np.float32]
_MOST = 4000  # vectors that the directions are found from


def project(
    vectors: Mapping[Side, Reals], rows: Mapping[Side, npt.NDArray[np.int64]], seed: int
) -> tuple[dict[Side, Reals], float]:
    """((n, 2) coordinates of the rows by side, the share of the variance that they hold): principal components.

    The sign of an axis is that of its largest weight, so that the same vectors give the same map.
    """
    random = np.random.default_rng(seed)
    unit = {side: _unit(vectors[side], rows[side]) for side in rows}
    both = np.concatenate(list(unit.values()))
    drawn = both if len(both) <= _MOST else both[np.sort(random.choice(len(both), _MOST, replace=False))]
    centre = drawn.mean(0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(drawn.astype(np.float64) - centre, full_matrices=False)
    axes = axes[:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    held = float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), 1e-30))
    found: dict[Side, Reals] = {}
    for side, each in unit.items():
        flat = ((each - centre) @ axes.T).astype(np.float32)
        found[side] = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return found, held


def _unit(vectors: Reals, rows: npt.NDArray[np.int64]) -> Reals:
    chosen = vectors[rows]
    return np.asarray(chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12), dtype=np.float32)
