"""What filtering must give, from plain loops over the full ranking; and candidates to filter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from miner import index
from miner.artifacts.candidates import CANDIDATES, Candidates, write_candidates
from miner.artifacts.manifest import Draft
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, sides
from miner.artifacts.store import LocalStore
from miner.filters import chosen
from miner.nearest import mine, mine_block
from miner.select import Selection

# (anchor row, candidate row, rank, score, lowest positive) -> whether to drop
Drop = Callable[[int, int, int, float, float], bool]
# anchor row -> ([(candidate row, score)], lowest positive): all that are not its positives, nearest first
Ranking = dict[int, tuple[list[tuple[int, float]], float]]


def fingerprints(problem: Any) -> dict[str, str]:
    return {"image": str(problem.images.sum()), "text": str(problem.texts.sum())}


def searched(problem: Any, direction: Direction, num: int, folder: Path) -> Candidates:
    """Candidates on disk, as a search writes them."""
    vectors, gallery = problem.vectors(direction)
    blocks = mine(vectors, index.build("flat", gallery), gallery, problem.pairs, direction, num)
    draft = Draft(LocalStore(folder), direction, CANDIDATES, {"num": num})
    about = {"vectors": fingerprints(problem), "metric": "ip", "index": "flat", "round": None, "checkpoint": None}
    for _ in write_candidates(draft, blocks, problem.pairs, direction, num, about):
        pass
    return Candidates.open(folder / direction, problem.pairs)


def made(
    pairs: Pairs, direction: Direction, lists: Sequence[Sequence[tuple[int, float]]], lowest: Sequence[float]
) -> Candidates:
    """Candidates out of thin air: (row, score) of every anchor in id order, short lists padded."""
    anchors, gallery = sides(direction)
    width = max(map(len, lists))
    place = np.argsort(pairs.order(gallery))
    positions = np.full((len(lists), width), -1, np.int32)
    scores = np.full((len(lists), width), np.nan, np.float32)
    for at, found in enumerate(lists):
        for rank, (row, score) in enumerate(found):
            positions[at, rank], scores[at, rank] = place[row], score
    bounds = np.array(lowest, np.float32)
    order, others = pairs.order(anchors), pairs.order(gallery)
    return Candidates(direction, width, positions, scores, bounds, order, others, {"metric": "ip"}, "made")


def deepener(problem: Any, direction: Direction) -> Callable[[np.ndarray, int], NegativeBlock]:
    vectors, gallery = problem.vectors(direction)
    built = index.build("flat", gallery)
    return lambda rows, depth: mine_block(vectors[rows], built, gallery, problem.pairs, direction, depth, rows)


def ranking(problem: Any, oracle: Any, direction: Direction) -> Ranking:
    found = oracle(problem, direction, len(problem.vectors(direction)[1]))
    return {row: (list(zip(rows, scores, strict=True)), lowest) for row, (rows, scores, lowest) in found.items()}


@dataclass
class Expected:
    """Of one anchor: negatives with scores; what was dropped before the last of them; how many were searched."""

    negatives: list[tuple[int, float]] = field(default_factory=list)
    dropped: list[tuple[int, int, float, int]] = field(default_factory=list)  # rank, row, score, number of the rule
    searched: int = 0


def expected(full: Ranking, drops: Sequence[Drop], k: int, depths: Sequence[int]) -> dict[int, Expected]:
    """Filter the full ranking, take k; an anchor is given up at the last of `depths`."""
    result = {}
    for anchor, (found, lowest) in full.items():
        for depth in depths:
            one = Expected(searched=min(depth, len(found)))
            for rank, (row, score) in enumerate(found[:depth]):
                if len(one.negatives) == k:
                    break
                first = next((n for n, drop in enumerate(drops) if drop(anchor, row, rank, score, lowest)), None)
                if first is None:
                    one.negatives.append((row, score))
                else:
                    one.dropped.append((rank, row, score, first))
            if len(one.negatives) == k:
                break
        result[anchor] = one
    return result


def selected(selection: Selection) -> tuple[dict[int, list[tuple[int, float]]], dict[int, list[Any]], dict[int, str]]:
    """(negatives, dropped, reasons) by anchor row, of all blocks."""
    negatives: dict[int, list[tuple[int, float]]] = {}
    dropped: dict[int, list[Any]] = {}
    reasons: dict[int, str] = {}
    for part in selection.blocks():
        block = part.negatives
        for at, row in enumerate(block.anchor_rows.tolist()):
            there = block.negatives[at] >= 0
            assert not (there[1:] & ~there[:-1]).any()
            assert np.isnan(block.scores[at][~there]).all()
            assert np.isfinite(block.scores[at][there]).all()
            negatives[row] = list(
                zip(block.negatives[at][there].tolist(), block.scores[at][there].tolist(), strict=True)
            )
            dropped[row] = []
        lost = part.dropped
        columns = (lost.anchors, lost.ranks, lost.candidates, lost.scores, lost.rules)
        for anchor, *rest in zip(*(column.tolist() for column in columns), strict=True):
            dropped[anchor].append(tuple(rest))
        reasons |= block.reasons
    return negatives, dropped, reasons


def assert_as_expected(selection: Selection, wanted: dict[int, Expected]) -> None:
    negatives, dropped, reasons = selected(selection)
    assert sorted(negatives) == sorted(wanted)
    for row, one in wanted.items():
        assert negatives[row] == one.negatives, row
        assert dropped[row] == one.dropped, row
        assert (row in reasons) == (len(one.negatives) < selection.k)
        if row in reasons:
            assert reasons[row].startswith(f"searched {one.searched} of "), reasons[row]
            for number, rule in enumerate(selection.rules):
                count = sum(each[3] == number for each in one.dropped)
                assert (f"{count} dropped by {rule.name}" in reasons[row]) == (count > 0)
            assert one.searched == len(one.negatives) + len(one.dropped)
    total = [sum(each[3] == n for one in wanted.values() for each in one.dropped) for n in range(len(selection.rules))]
    assert list(selection.counts.values()) == total


def selection(problem: Any, candidates: Candidates, said: Sequence[str], k: int, **more: Any) -> Selection:
    vectors = {"image": problem.images, "text": problem.texts}
    return Selection(candidates, problem.pairs, chosen(said), k, **{"vectors": vectors, **more})


def own_pairs(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.image_rows.tolist(), pairs.text_rows.tolist(), strict=True))


def texts_of(pairs: Pairs, image: int) -> list[int]:
    return [t for i, t in sorted(own_pairs(pairs)) if i == image]


def images_of(pairs: Pairs, text: int) -> list[int]:
    return [i for i, t in sorted(own_pairs(pairs)) if t == text]


def ends(direction: Direction, anchor: int, item: int) -> tuple[int, int]:
    """(image, text) of an anchor and a candidate."""
    return (anchor, item) if direction == "i2t" else (item, anchor)


def by_text(pairs: Pairs, direction: Direction, alike: Callable[[int, int], bool]) -> Drop:
    """Whether the text is alike any of the image's own texts."""
    own = {image: texts_of(pairs, image) for image in range(pairs.num_images)}

    def drop(anchor: int, item: int, rank: int, score: float, lowest: float) -> bool:
        image, text = ends(direction, anchor, item)
        return any(alike(text, other) for other in own[image])

    return drop


def by_image(pairs: Pairs, direction: Direction, alike: Callable[[int, int], bool]) -> Drop:
    """Whether the image is alike any of the text's own images."""
    own = {text: images_of(pairs, text) for text in range(pairs.num_texts)}

    def drop(anchor: int, item: int, rank: int, score: float, lowest: float) -> bool:
        image, text = ends(direction, anchor, item)
        return any(alike(image, other) for other in own[text])

    return drop


def cosine(vectors: np.ndarray, a: int, b: int) -> float:
    first, second = vectors[a].astype(float).tolist(), vectors[b].astype(float).tolist()
    dot = math.fsum(x * y for x, y in zip(first, second, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in first)) / math.sqrt(math.fsum(y * y for y in second))


def percentile(values: Sequence[float], per_hundred: int) -> float:
    """The ceil(p / 100 * n)-th of n values from below; -inf for p = 0."""
    ordered = sorted(values)
    place = -(-per_hundred * len(ordered) // 100)
    return ordered[place - 1] if place else -math.inf
