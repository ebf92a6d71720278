"""Retrieval metrics by loops over sorted lists. Scores are whole numbers: a tie is a tie, and nothing is rounded."""

from __future__ import annotations

import statistics

import numpy as np

from miner.artifacts.pairs import Pairs

Links = set[tuple[int, int]]


def whole_scores(images: int, texts: int, seed: int, values: int | None = None) -> np.ndarray:
    """(images, texts) float32 whole numbers: all different, or of a few `values` with ties everywhere."""
    rng = np.random.default_rng(seed)
    if values is None:
        return rng.permutation(images * texts).reshape(images, texts).astype(np.float32)
    return rng.integers(values, size=(images, texts)).astype(np.float32)


def links_of(pairs: Pairs) -> Links:
    return set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))


def rankings(scores: np.ndarray, links: Links, direction: str) -> list[tuple[list[int], set[int]]]:
    """Of every anchor: the gallery, best first, negatives first where scores are equal; and its positives."""
    if direction == "t2i":
        scores, links = scores.T, {(text, image) for image, text in links}
    found = []
    for anchor, row in enumerate(scores.tolist()):
        own = {other for one, other in links if one == anchor}
        found.append((sorted(range(len(row)), key=lambda item: (-row[item], item in own)), own))
    return found


def metrics(scores: np.ndarray, links: Links) -> dict[str, float]:
    found: dict[str, float] = {}
    for direction in ("i2t", "t2i"):
        ranks = []
        for ranked, own in rankings(scores, links, direction):
            ranks.append(next(place for place, item in enumerate(ranked, 1) if item in own))
        for cutoff in (1, 5, 10):
            found[f"{direction}_r{cutoff}"] = 100 * sum(rank <= cutoff for rank in ranks) / len(ranks)
        found[f"{direction}_median_rank"] = statistics.median(ranks)
        found[f"{direction}_mean_rank"] = sum(ranks) / len(ranks)
    found["rsum"] = sum(found[f"{d}_r{c}"] for d in ("i2t", "t2i") for c in (1, 5, 10))
    return found


def extended(scores: np.ndarray, links: Links, judged: dict[str, set[int]]) -> dict[str, float]:
    """`links` are all positives; `judged` has the queries of "i2t" and "t2i"."""
    found: dict[str, float] = {}
    for direction in ("i2t", "t2i"):
        columns: dict[str, list[float]] = {
            name: [] for name in ("map_at_r", "r_precision", "extended_r1", "extended_r5", "extended_r10")
        }
        for anchor, (ranked, own) in enumerate(rankings(scores, links, direction)):
            if anchor not in judged[direction] or not own:
                continue
            hits, total = 0, 0.0
            for place, item in enumerate(ranked[: len(own)], 1):
                if item in own:
                    hits += 1
                    total += hits / place
            columns["map_at_r"].append(total / len(own))
            columns["r_precision"].append(hits / len(own))
            for cutoff in (1, 5, 10):
                columns[f"extended_r{cutoff}"].append(bool(own & set(ranked[:cutoff])))
        found |= {f"{direction}_{name}": 100 * sum(column) / len(column) for name, column in columns.items()}
    return found
