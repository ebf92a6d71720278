"""COCOS: counts read off by hand on one made batch, both directions, for every loss.

Any batch, and a data set with a checkpoint: `test_analyze_gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trainer import losses
from trainer.analyze import Threshold, contributions
from trainer.similarities import Offline, Similarities

pytestmark = pytest.mark.usefixtures("one_thread")

Found = dict[tuple[str, str, float], dict[str, float]]

# Images x texts, pairs on the diagonal, margin 0.2. A negative is within the margin when
#   of its row     it is above 0.70, 0.40, 0.60, 0.30:   i0: t1, t2    i1: -     i2: -         i3: t0, t1, t2
#   of its column  it is above 0.70, 0.40, 0.60, 0.30:   t0: i3        t1: i0    t2: i0, i3    t3: -
HAND = [
    [0.90, 0.75, 0.72, 0.00],
    [0.35, 0.60, 0.38, 0.20],
    [0.00, 0.10, 0.80, 0.25],
    [0.85, 0.35, 0.65, 0.50],
]
P = (0.90, 0.60, 0.80, 0.50)
HARDEST = {"i2t": (0.75, 0.38, 0.25, 0.85), "t2i": (0.85, 0.75, 0.72, 0.25)}
A_T, A_V = (0.95, 0.30, 0.85, 0.40), (0.10, 0.65, 0.70, 0.55)
HAS_IMAGE = (True, True, True, False)


def hand(*, offline: bool = False) -> Similarities:
    found = None
    if offline:
        c_1, c_2 = (0.95, 0.65, 0.10, 0.60), (0.20, 0.70, 0.90, 0.10)
        flags = ((True,) * 4, HAS_IMAGE, (False, True, False, False), (False,) * 4)  # (I-, T-) of pair 1 is a true pair
        scores = (torch.tensor(values, dtype=torch.double) for values in (A_T, A_V, c_1, c_2))
        found = Offline(*scores, *(torch.tensor(flag) for flag in flags))
    return Similarities(torch.tensor(HAND, dtype=torch.double), ~torch.eye(4, dtype=torch.bool), found)


def counted(config: Any, step: Similarities, *thresholds: float) -> Found:
    return {key[:3]: found for key, found in contributions(config, step, [Threshold(t) for t in thresholds])}


def check(found: dict[str, float], weights: Sequence[Sequence[float]], positive: float | None, above: float) -> None:
    """All figures against the weights of every query's negatives."""
    per_query = [sum(w > above for w in row) for row in weights]
    queries, count, none = len(weights), sum(per_query), per_query.count(0)
    expected = {
        "queries": queries,
        "count": count,
        "none": none,
        "per_query": count / (queries - none) if none < queries else 0.0,
        "share": count / queries,
        "weight": sum(w for row in weights for w in row if w > above) / queries,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert math.isnan(found["positive"]) if positive is None else found["positive"] == pytest.approx(positive, abs=1e-9)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_triplet_with_all_negatives() -> None:
    found = counted(losses.configure("triplet", {"max_violation": False}), hand(), 0.0)
    figures = {"queries": 4, "count": 5, "none": 2, "per_query": 2.5, "share": 1.25, "weight": 1.25, "positive": 1.25}
    figures["nearer"] = 0.0
    assert found["i2t", "online", 0.0] == pytest.approx(figures)  # 2, 0, 0, 3; each hinge pulls its positive once
    figures = {"queries": 4, "count": 4, "none": 1, "per_query": 4 / 3, "share": 1.0, "weight": 1.0, "positive": 1.0}
    figures["nearer"] = 0.0
    assert found["t2i", "online", 0.0] == pytest.approx(figures)  # 1, 1, 2, 0
    assert set(found) == {("i2t", "online", 0.0), ("t2i", "online", 0.0)}


def test_what_aoq_pulls_nearer_is_said() -> None:
    """p = 0.5, o = 0.4, a = 0: the offline hinge is empty; dL/da = -[0.2 + o - p] / alpha = -1/3 through w alone."""
    scores = torch.tensor([[0.5, 0.4], [0.4, 0.5]], dtype=torch.double)
    zero, yes = torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.bool)
    step = Similarities(scores, scores < 0.5, Offline(zero, zero, zero, zero, yes, yes, ~yes, ~yes))
    for detach, expected in ((False, (2, 1 / 3, 1.0)), (True, (0, 0.0, 0.0))):
        found = counted(losses.configure("aoq", {"detach_weights": detach}), step, 0.0)
        for direction in ("i2t", "t2i"):
            offline = found[direction, "offline", 0.0]
            assert [offline[key] for key in ("count", "weight", "nearer")] == pytest.approx(expected)
            assert found[direction, "online", 0.0]["nearer"] == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_triplet_with_the_hardest(reduction: str) -> None:
    found = counted(losses.configure("triplet", {"reduction": reduction}), hand(), 0.0, 0.5, 1.0)
    check(found["i2t", "online", 0.0], [[1], [], [], [1]], 0.5, 0.0)  # i0: t1, i3: t0
    check(found["t2i", "online", 0.5], [[1], [1], [1], []], 0.75, 0.5)  # t0: i3, t1: i0, t2: i0
    assert found["t2i", "online", 1.0]["count"] == 0  # a weight of exactly the threshold is not above it
    assert found["t2i", "online", 1.0]["none"] == 4
    assert found["t2i", "online", 1.0]["per_query"] == 0.0


@pytest.mark.parametrize("form", ["OffTri", "OffQuin"])
def test_aoq_with_plain_hinges(form: str) -> None:
    found = counted(losses.configure("aoq", {"form": form}), hand(offline=True), 0.0)
    # Offline, without margin, above 0.90, 0.60, 0.80, 0.50: a_t of pairs 0 and 2; a_v of pair 1, as pair 3 has none.
    check(found["i2t", "online", 0.0], [[1], [], [], [1]], mean([1 + 1, 0, 1, 1]), 0.0)
    check(found["i2t", "offline", 0.0], [[1], [], [1], []], mean([1 + 1, 0, 1, 1]), 0.0)
    check(found["t2i", "online", 0.0], [[1], [1], [1], []], mean([1, 1 + 1, 1, 0]), 0.0)
    check(found["t2i", "offline", 0.0], [[], [1], [], []], mean([1, 1 + 1, 1, 0]), 0.0)
    assert len(found) == (4 if form == "OffTri" else 6)
    if form == "OffQuin":
        check(found["both", "c_1", 0.0], [[1], [], [], []], None, 0.0)  # 1 is a true pair, 3 has no I-
        check(found["both", "c_2", 0.0], [[], [1], [1], []], None, 0.0)


def test_aoq_with_adaptive_weights() -> None:
    """w = 1.5 - (a - o) / 0.3 has a gradient too: at an online hinge h, o weighs w + h / 0.3 and a less by h / 0.3."""
    found = counted(losses.configure("aoq"), hand(offline=True), 0.0, 1.5)
    # i2t: h = 0.05 in pair 0, w = 1.5 - 0.2 / 0.3; h = 0.55 in pair 3, w = 1.5 + 0.45 / 0.3
    w_0, w_3 = 2.5 / 3, 3.0
    online = [[w_0 + 0.5 / 3], [], [], [w_3 + 5.5 / 3]]  # 1, 4.83
    offline = [[1 - 0.5 / 3], [], [1], [5.5 / 3]]  # 0.83, 1, and 1.83 where a_t itself is at rest
    for above in (0.0, 1.5):  # 2 and 3 count, above 1.5 pair 3 alone
        check(found["i2t", "online", above], online, mean([w_0 + 1, 0, 1, w_3]), above)
        check(found["i2t", "offline", above], offline, mean([w_0 + 1, 0, 1, w_3]), above)
    assert [found["i2t", "offline", above]["count"] for above in (0.0, 1.5)] == [3, 1]
    # t2i: h = 0.15, 0.35, 0.12; w = 1.5 + 0.75 / 0.3, 1.5 + 0.1 / 0.3, 1.5 + 0.02 / 0.3
    w_0, w_1, w_2 = 4.0, 5.5 / 3, 4.7 / 3
    check(found["t2i", "online", 0.0], [[4.5], [3.0], [w_2 + 0.4], []], mean([w_0, w_1 + 1, w_2, 0]), 0.0)
    check(found["t2i", "offline", 0.0], [[0.5], [3.5 / 3 - 1], [0.4], []], mean([w_0, w_1 + 1, w_2, 0]), 0.0)
    detached = counted(losses.configure("aoq", {"detach_weights": True}), hand(offline=True), 0.0)
    check(detached["t2i", "online", 0.0], [[w_0], [w_1], [w_2], []], mean([w_0, w_1 + 1, w_2, 0]), 0.0)
    check(detached["t2i", "offline", 0.0], [[], [1], [], []], mean([w_0, w_1 + 1, w_2, 0]), 0.0)


def softmax(line: Sequence[float], own: int, offline: float | None = None) -> tuple[list[float], float, float]:
    """(negatives, positive, offline) at temperature 0.1."""
    powers = [math.exp(score / 0.1) for score in line]
    extra = 0.0 if offline is None else math.exp(offline / 0.1)
    shares = [power / (sum(powers) + extra) for power in powers]
    return shares[:own] + shares[own + 1 :], shares[own], extra / (sum(powers) + extra)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ntxent_counts_probabilities(reduction: str) -> None:
    found = counted(losses.configure("ntxent", {"reduction": reduction}), hand(), 0.0, 0.01, 0.1)
    expected = {
        # i0: 0.16 0.12 0.0001   i1: 0.07 0.09 0.015   i2: 0.0003 0.0009 0.004   i3: 0.85 0.006 0.12
        "i2t": (HAND, {0.0: (12, 0), 0.01: (7, 1), 0.1: (4, 2)}),
        # t0: 0.003 0 0.38       t1: 0.80 0.001 0.015  t2: 0.27 0.009 0.13        t3: 0.006 0.04 0.07
        "t2i": (list(zip(*HAND, strict=True)), {0.0: (12, 0), 0.01: (7, 0), 0.1: (4, 1)}),
    }
    for direction, (lines, literal) in expected.items():
        shares = [softmax(line, own) for own, line in enumerate(lines)]
        for above, (count, none) in literal.items():
            one = found[direction, "online", above]
            assert (one["count"], one["none"]) == (count, none)
            check(one, [row for row, _, _ in shares], mean([1 - own for _, own, _ in shares]), above)


def test_ntxent_with_the_offline_negative_in_its_softmax() -> None:
    found = counted(losses.configure("ntxent", {"offline": "softmax"}), hand(offline=True), 0.01)
    # a_t: 0.54 0.04 0.62 0.009; a_v: 0.0002 0.23 0.18 and none
    for direction, lines, extra, literal in (
        ("i2t", HAND, A_T, (3, 1)),
        ("t2i", list(zip(*HAND, strict=True)), (*A_V[:3], None), (2, 2)),
    ):
        shares = [softmax(line, own, extra[own]) for own, line in enumerate(lines)]
        positive = mean([1 - own for _, own, _ in shares])
        one = found[direction, "offline", 0.01]
        assert (one["count"], one["none"]) == literal
        check(one, [[offline] for _, _, offline in shares], positive, 0.01)
        check(found[direction, "online", 0.01], [row for row, _, _ in shares], positive, 0.01)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_offline_hinges_on_top_weigh_as_hinges(reduction: str) -> None:
    """Whatever the unit of the loss that they are on top of, whose own weights stay as they are."""
    settings = {"offline": "OffTri", "offline_weight": 0.5, "reduction": reduction}
    found = counted(losses.configure("ntxent", settings), hand(offline=True), 0.01)
    shares = [softmax(line, own) for own, line in enumerate(HAND)]
    positive = mean([1 - own + 0.5 * hinge for (_, own, _), hinge in zip(shares, (1, 0, 1, 0), strict=True)])
    check(found["i2t", "online", 0.01], [row for row, _, _ in shares], positive, 0.01)
    check(found["i2t", "offline", 0.01], [[0.5], [], [0.5], []], positive, 0.01)  # a_t above p in pairs 0 and 2
    for name in ("triplet", "smoothap", "goal", "sct", "selhn"):
        found = counted(losses.configure(name, settings), hand(offline=True), 0.01)
        assert [found["i2t", "offline", 0.01][key] for key in ("count", "none", "weight")] == [2, 2, 0.25]
        assert [found["t2i", "offline", 0.01][key] for key in ("count", "none", "weight")] == [1, 3, 0.125]  # pair 1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_smoothap_counts_its_closed_form(reduction: str) -> None:
    """Image 0 has texts 0 and 1, image 1 has text 2. Temperature 0.01: only what is near a positive has a slope."""
    lines = [[0.90, 0.50, 0.50], [0.895, 0.605, 0.60]]
    own = [{0, 1}, {2}]
    valid = torch.tensor([[j not in mine for j in range(3)] for mine in own])
    places = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    step = Similarities(torch.tensor(lines, dtype=torch.double), valid, None, *places)
    found = counted(losses.configure("smoothap", {"reduction": reduction}), step, 0.01, 0.05)
    # i0: t2 ties with t1, ranked 2.5: 1/2 * 2 * 0.25 / 2.5^2 = 0.04     i1: t1 is 0.5 tau above t2: 0.034
    # t0: i1 is 0.5 tau below i0: 0.24 / 1.38^2 = 0.12                   t1, t2: nothing within 9 tau
    literal = {("i2t", 0.01): (2, 0), ("i2t", 0.05): (0, 2), ("t2i", 0.01): (1, 2), ("t2i", 0.05): (1, 2)}
    columns, owners = list(zip(*lines, strict=True)), [{0}, {0}, {1}]
    for (direction, above), (count, none) in literal.items():
        one = found[direction, "online", above]
        assert (one["count"], one["none"]) == (count, none)
        queries = zip(lines, own, strict=True) if direction == "i2t" else zip(columns, owners, strict=True)
        slopes = [slopes_of_ap(scores, mine) for scores, mine in queries]
        positives = [abs(slope) for _, at_own in slopes for slope in at_own]
        check(one, [rest for rest, _ in slopes], mean(positives), above)


def slopes_of_ap(scores: Sequence[float], own: set[int], tau: float = 0.01) -> tuple[list[float], list[float]]:
    """tau d(1 - AP)/ds of the negatives and of the positives: loops over every pair of candidates."""
    slopes = dict.fromkeys(range(len(scores)), 0.0)
    for a in own:
        above = {b: sigma((scores[b] - scores[a]) / tau) for b in range(len(scores)) if b != a}
        wrong, rank = sum(g for b, g in above.items() if b not in own), 1 + sum(above.values())
        for b, g in above.items():
            # 1 - AP has the terms wrong / rank, over |P|; g grows with s_b and falls with s_a.
            slope = g * (1 - g) * ((b not in own) / rank - wrong / rank**2) / len(own)
            slopes[b] += slope
            slopes[a] -= slope
    return [slopes[b] for b in slopes if b not in own], [slopes[a] for a in own]


@pytest.mark.parametrize("pair", ["con", "lin", "sig"])
@pytest.mark.parametrize("triplet", ["con", "nca", "cir", "hinge"])
def test_goal_counts_its_weights(triplet: str, pair: str) -> None:
    found = counted(losses.configure("goal", {"triplet": triplet, "pair": pair}), hand(), 0.0, 0.3)
    for direction, hardest in HARDEST.items():
        weights, pulls = [], []
        for p, n in zip(P, hardest, strict=True):
            t = {
                "con": 1.0,
                "nca": sigma(10 * (n - p)),
                "cir": sigma(-10 * (p * (2 - p) - n * n - 0.5)),
                "hinge": float(0.2 + n > p),
            }[triplet]
            pull, push = {"con": (1, 1), "lin": (1 - p, n), "sig": (sigma(-2 * (p - 0.5)), sigma(10 * (n - 0.5)))}[pair]
            weights.append([t * push])
            pulls.append(t * pull)
        for above in (0.0, 0.3):
            check(found[direction, "online", above], weights, mean(pulls), above)
    if (triplet, pair) == ("nca", "con"):
        # sigma(10 (n - p)): i2t 0.18 0.10 0.004 0.97; t2i 0.38 0.82 0.31 0.08
        assert [found[d, "online", 0.3]["count"] for d in ("i2t", "t2i")] == [1, 3]
    if triplet == "hinge":
        assert [found[d, "online", 0.0]["count"] for d in ("i2t", "t2i")] == [2, 3]  # as the hardest triplet


def test_goal_over_offline_triplets_alone() -> None:
    found = counted(losses.configure("goal", {"offline": "goal_only"}), hand(offline=True), 0.5)
    # sigma(10 (a - p)): i2t 0.62 0.05 0.62 0.27; t2i 0.0003 0.62 0.27 and none
    for direction, extra in (("i2t", A_T), ("t2i", A_V[:3])):
        weights = [[sigma(10 * (a - p))] for a, p in zip(extra, P, strict=False)] + [[]] * (4 - len(extra))
        check(found[direction, "offline", 0.5], weights, sum(map(sum, weights)) / 4, 0.5)
        assert found[direction, "online", 0.5]["count"] == 0
    assert [found[d, "offline", 0.5]["count"] for d in ("i2t", "t2i")] == [2, 1]


def test_sct_pulls_no_positive_where_the_negative_is_too_close() -> None:
    found = counted(losses.configure("sct"), hand(), 0.0, 0.9)
    soft = {d: [10 * sigma(10 * (n - p)) for n, p in zip(HARDEST[d], P, strict=True)] for d in HARDEST}
    # i2t: i3 has 0.85 > 0.5. t2i: t0 has 0.85 > 0.8, t1 has 0.75 > 0.6. These weigh 1 and leave the positive alone.
    i2t, t2i = [*soft["i2t"][:3], 1.0], [1.0, 1.0, *soft["t2i"][2:]]
    check(found["i2t", "online", 0.0], [[w] for w in i2t], sum(i2t[:3]) / 4, 0.0)
    check(found["t2i", "online", 0.0], [[w] for w in t2i], sum(t2i[2:]) / 4, 0.0)
    # 1.8 1.0 0.04 1, and 1 1 3.1 0.8: three of four are above 0.9 in both directions
    assert [found[d, "online", 0.9]["count"] for d in HARDEST] == [3, 3]


def test_selhn_averages_where_gradients_would_vanish() -> None:
    plain = counted(losses.configure("selhn"), hand(), 0.0)
    assert [plain[d, "online", 0.0]["count"] for d in HARDEST] == [2, 3]  # no score within 0.01: the hardest
    found = counted(losses.configure("selhn", {"epsilon": 0.1}), hand(), 0.0, 0.5)
    check(found["i2t", "online", 0.0], [[1], [], [], [1]], 0.5, 0.0)
    # t0 and t2 have their hardest within 0.1 of the positive: a third of each of their hinges.
    weights = [[1 / 3], [1], [1 / 3, 1 / 3], []]
    check(found["t2i", "online", 0.0], weights, 0.5, 0.0)  # 1, 1, 2, 0
    check(found["t2i", "online", 0.5], weights, 0.5, 0.5)  # 0, 1, 0, 0
