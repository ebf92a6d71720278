"""The losses as slow loops over explicit tuples, written from their formulas in plain differentiable torch.

Every function takes a `Config` and a `Step` and gives the parts that `losses.parts` should. GOAL, which is defined by
its gradient, gives that instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.trainer.losses_batches import Entry, Parts, Step


class Anchor(NamedTuple):
    """One pair seen from one side: its positive and the negatives of its anchor."""

    searched: str
    pair: int
    place: Entry
    positive: Tensor
    negatives: dict[Entry, Tensor]


def anchors(step: Step, mask: str) -> Iterator[Anchor]:
    own = step.belong if mask == "valid" else set(step.pairs)
    rows, columns = step.scores.shape
    for pair, (i, j) in enumerate(step.pairs):
        for searched in ("text", "image"):
            line = [(i, c) for c in range(columns)] if searched == "text" else [(r, j) for r in range(rows)]
            negatives = {place: step.entries[place] for place in line if place not in own}
            yield Anchor(searched, pair, (i, j), step.entries[i, j], negatives)


def hardest(anchor: Anchor) -> Entry | None:
    return max(anchor.negatives, key=lambda place: anchor.negatives[place].item(), default=None)


def reduced(config: Any, step: Step, values: list[Tensor]) -> Tensor:
    found = step.scores.new_zeros(())
    for value in values:
        found = found + value
    return found / len(step.pairs) if config.reduction == "mean" else found


def online(config: Any, step: Step, per_anchor: Callable[[Anchor], Tensor]) -> Parts:
    found: dict[str, list[Tensor]] = {"online_text": [], "online_image": []}
    for anchor in anchors(step, config.mask):
        found[f"online_{anchor.searched}"].append(per_anchor(anchor))
    return {name: reduced(config, step, values) for name, values in found.items()}


def hinge(value: Tensor) -> Tensor:
    return value if value > 0 else value * 0


def offline_hinges(config: Any, step: Step, *, quintuplet: bool) -> Parts:
    found: dict[str, list[Tensor]] = {"offline_text": [], "offline_image": []}
    if quintuplet:
        found |= {"negatives": [], "partners": []}
    for pair, place in enumerate(step.pairs):
        p, has_text, has_image = step.entries[place], step.flags["has_text"][pair], step.flags["has_image"][pair]
        if has_text:
            found["offline_text"].append(hinge(config.margin_offline + step.offline_entries["text"][pair] - p))
        if has_image:
            found["offline_image"].append(hinge(config.margin_offline + step.offline_entries["image"][pair] - p))
        for name in ("negatives", "partners") if quintuplet and has_text and has_image else ():
            if config.mask == "diagonal" or not step.flags[f"true_{name}"][pair]:
                found[name].append(hinge(config.margin_offline + step.offline_entries[name][pair] - p))
    return {name: reduced(config, step, values) for name, values in found.items()}


def with_offline(slow: Callable[[Any, Step], Parts]) -> Callable[[Any, Step], Parts]:
    """The in-batch loss with AOQ's offline hinges on top."""

    def both(config: Any, step: Step) -> Parts:
        found = slow(config, step)
        if config.offline in ("OffTri", "OffQuin"):
            hinges = offline_hinges(config, step, quintuplet=config.offline == "OffQuin")
            found |= {name: config.offline_weight * value for name, value in hinges.items()}
        return found

    return both


@with_offline
def triplet(config: Any, step: Step) -> Parts:
    def per_anchor(anchor: Anchor) -> Tensor:
        place = hardest(anchor)
        chosen = [place] if config.max_violation and place is not None else list(anchor.negatives)
        loss = anchor.positive * 0
        for place in chosen:
            loss = loss + hinge(config.margin + anchor.negatives[place] - anchor.positive)
        return loss

    return online(config, step, per_anchor)


def aoq(config: Any, step: Step) -> Parts:
    def per_anchor(anchor: Anchor) -> Tensor:
        place = hardest(anchor)
        if place is None:
            return anchor.positive * 0
        o = anchor.negatives[place]
        w = torch.ones_like(o)
        if config.form == "AdapOffQuin" and step.flags[f"has_{anchor.searched}"][anchor.pair]:
            w = config.beta - (step.offline_entries[anchor.searched][anchor.pair] - o) / config.alpha
            w = w.detach() if config.detach_weights else w
            w = w * 0 if config.clamp_weights and w < 0 else w
        return w * hinge(config.margin_online + o - anchor.positive)

    return online(config, step, per_anchor) | offline_hinges(config, step, quintuplet=config.form != "OffTri")


@with_offline
def ntxent(config: Any, step: Step) -> Parts:
    def per_anchor(anchor: Anchor) -> Tensor:
        own = torch.exp(anchor.positive / config.tau)
        everything, each = own, 1.0
        if config.offline == "softmax" and step.flags[f"has_{anchor.searched}"][anchor.pair]:
            times = config.offline_weight
            if config.correction == "stratified":
                q = step.shares[anchor.searched][anchor.pair]
                times, each = times * max(len(anchor.negatives), 1) * q, 1 - q
            everything = everything + times * torch.exp(step.offline_entries[anchor.searched][anchor.pair] / config.tau)
        for score in anchor.negatives.values():
            everything = everything + each * torch.exp(score / config.tau)
        return -0.5 * torch.log(own / everything)

    return online(config, step, per_anchor)


@with_offline
def smoothap(config: Any, step: Step) -> Parts:
    own = step.belong if config.mask == "valid" else set(step.pairs)
    rows, columns = step.scores.shape
    lines = {
        "online_text": [[(i, j) for j in range(columns)] for i in range(rows)],
        "online_image": [[(i, j) for i in range(rows)] for j in range(columns)],
    }
    found = {}
    for name, queries in lines.items():
        losses = []
        for candidates in queries:
            positives = [place for place in candidates if place in own]
            precision = step.scores.new_zeros(())
            for a in positives:
                rank = rank_of_positives = step.scores.new_ones(())
                for b in candidates:
                    if b != a:
                        exponent = (step.entries[b] - step.entries[a]) / config.tau
                        above = 1 / (1 + torch.exp(-exponent.clamp(-50, 50)))
                        rank = rank + above
                        if b in positives:
                            rank_of_positives = rank_of_positives + above
                precision = precision + rank_of_positives / rank
            if positives:
                losses.append(1 - precision / len(positives))
        summed = 0.5 * torch.stack(losses).sum()
        found[name] = summed / len(losses) if config.reduction == "mean" else summed
    return found


@with_offline
def sct(config: Any, step: Step) -> Parts:
    def per_anchor(anchor: Anchor) -> Tensor:
        place = hardest(anchor)
        if place is None:
            return anchor.positive * 0
        negative = anchor.negatives[place]
        if negative > anchor.positive or negative > config.too_close:
            return negative * config.weight
        return torch.log(1 + torch.exp(config.scale * (negative - anchor.positive)))

    return online(config, step, per_anchor)


@with_offline
def selhn(config: Any, step: Step) -> Parts:
    def per_anchor(anchor: Anchor) -> Tensor:
        place = hardest(anchor)
        if place is None:
            return anchor.positive * 0
        if abs((anchor.positive - anchor.negatives[place]).item()) < config.epsilon:
            hinges = [hinge(config.margin + score - anchor.positive) for score in anchor.negatives.values()]
            return torch.stack(hinges).sum() / len(hinges)
        return hinge(config.margin + anchor.negatives[place] - anchor.positive)

    return online(config, step, per_anchor)


class Tuple(NamedTuple):
    """One triplet of GOAL: where its scores are, and its weights."""

    name: str  # online_text, online_image, offline_text, offline_image
    pair: int
    positive: Entry
    negative: Entry | None  # None: the pair's offline negative
    scores: tuple[float, float]
    weights: tuple[float, float, float]  # T, P+, P-


def goal_tuples(config: Any, step: Step) -> Iterator[Tuple]:
    with_tables = config.offline in ("goal", "goal_only")
    for anchor in anchors(step, config.mask):
        place, p = hardest(anchor), anchor.positive.item()
        if place is not None and config.offline != "goal_only":
            n = anchor.negatives[place].item()
            weights = goal_weights(config, step, anchor, p, n, place)
            yield Tuple(f"online_{anchor.searched}", anchor.pair, anchor.place, place, (p, n), weights)
        if with_tables and step.flags[f"has_{anchor.searched}"][anchor.pair]:
            n = step.offline_entries[anchor.searched][anchor.pair].item()
            weights = goal_weights(config, step, anchor, p, n, None)
            yield Tuple(f"offline_{anchor.searched}", anchor.pair, anchor.place, None, (p, n), weights)


def goal_weights(
    config: Any, step: Step, anchor: Anchor, p: float, n: float, left_out: Entry | None
) -> tuple[float, float, float]:
    tau, a, b, middle = config.tau, config.a, config.b, config.l
    triplet = {
        "con": 1.0,
        "nca": logistic(tau * (n - p)),
        "cir": logistic(-tau * (p * (2 - p) - n**2 - 0.5)),
        "hinge": 1.0 if config.margin + n > p else 0.0,
    }[config.triplet]
    positives = [step.entries[place].item() for place in step.pairs]
    near = [other for k, other in enumerate(positives) if k != anchor.pair and other <= n + 0.1]
    rest = [score.item() for place, score in anchor.negatives.items() if place != left_out]
    rest = [score for score in rest if score >= min(positives) - 0.1]
    if config.pair == "con":
        return triplet, 1.0, 1.0
    if config.pair == "lin":
        return triplet, 1 - p, n
    if config.pair == "sig":
        return triplet, 1 / (1 + math.exp(a * (p - middle))), 1 / (1 + math.exp(-b * (n - middle)))
    if config.pair == "lin_ms":
        r_pos, r_neg = mean([p - other for other in near]), mean([n - score for score in rest])
        return triplet, (1 - r_pos) * (1 - p), (1 + r_neg) * n
    r_pos = mean([math.exp(a * (p - other)) for other in near])
    r_neg = mean([math.exp(-b * (n - score)) for score in rest])
    if config.pair == "sig_ms_bounded":
        r_pos, r_neg = r_pos + 1, r_neg + 1
    return triplet, 1 / (math.exp(a * (p - middle)) + r_pos), 1 / (math.exp(-b * (n - middle)) + r_neg)


def goal_gradient(config: Any, step: Step, names: tuple[str, ...] = ("online", "offline")) -> list[Tensor]:
    """By (scores, text, image, negatives, partners): the weights, gathered triplet by triplet."""
    found = [torch.zeros_like(step.scores), *(torch.zeros_like(values) for values in step.offline.values())]
    for one in goal_tuples(config, step):
        if one.name in names or one.name.partition("_")[0] in names:
            triplet, pull, push = one.weights
            share = 1 / len(step.pairs) if config.reduction == "mean" else 1.0
            share *= config.offline_weight if one.negative is None else 1.0
            found[0][one.positive] -= share * triplet * pull
            if one.negative is not None:
                found[0][one.negative] += share * triplet * push
            else:
                found[1 if one.name == "offline_text" else 2][one.pair] += share * triplet * push
    return found


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
