"""Rules on the score, with values for a model at hand: what each keeps, and which to take.

As filters have them, a candidate with score s is dropped when

    relative-margin   s > lowest_positive - margin * |lowest_positive|
    absolute-margin   s > lowest_positive - margin
    max-score         s > score

Each drops an anchor's hardest candidates down to some place, and the next k are its negatives. A rung of the ladder is
one rule with one value; its `shares` are

    candidates_kept           of all candidates
    hardest_kept              of the k hardest of every anchor: what the rule costs
    anchors_with_k            of the anchors, those that k candidates are left to
    positives_dropped         of what scores like a positive and would be among the k hardest. Where anchors have
                              several positives each is hidden in turn: would the rule, knowing the others, drop it?
                              Else positives of other anchors stand in, any with any
    false_negatives_dropped   with judged pairs: of the matches among the k hardest
    true_negatives_dropped    of the others

and `false_negatives` is the share of matches among the k that are left. The rung proposed tells false from true
negatives best: most false negatives dropped less true ones dropped (Youden's J) among the k hardest; without
judgements, most positives dropped less hardest dropped, on the assumption that false negatives score like positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.artifacts.errors import BadInput
from miner.judged import Share

__all__ = ["Rung", "ladder", "propose"]

Reals = npt.NDArray[np.float64]

# A margin below 0 lets negatives score above a positive, which may be right where the lowest of several is low.
RELATIVE = (-0.5, -0.2, -0.1, 0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PERCENTILES = (99, 95, 90, 75, 50, 25)
# A rule must leave k candidates to so many anchors to be proposed, and be so much better than chance.
ENOUGH, WORTH = 0.9, 0.05
_LEAST_MATCHES = 20


@dataclass
class Rung:
    """One rule with one value; `rule` is how `--rule` takes it, "" for none. Figures are as the module says."""

    rule: str
    name: str
    value: float
    note: str = ""
    kept: int = 0
    hardest: int = 0
    anchors: int = 0
    shares: dict[str, float | None] = field(default_factory=dict)
    false_negatives: Share | None = None

    def highest(self, lowest: npt.NDArray[Any]) -> Reals:
        """The highest score that is not dropped, for lowest positives of any shape."""
        wide = lowest.astype(np.float64)
        if self.name == "relative-margin":
            return np.asarray(wide - self.value * np.abs(wide))
        if self.name == "absolute-margin":
            return wide - self.value
        return np.full_like(wide, self.value if self.name else np.inf)

    def numbers(self) -> dict[str, Any]:
        """As JSON takes it."""
        shares = {name: None if share is None else round(share, 6) for name, share in self.shares.items()}
        judged = None if self.false_negatives is None else self.false_negatives.numbers()
        return {"rule": self.rule or None, "note": self.note, **shares, "false_negatives": judged}


def ladder(lowest: npt.NDArray[np.float32]) -> list[Rung]:
    """The rungs for a model with these lowest positives; none first."""
    finite = lowest[np.isfinite(lowest)].astype(np.float64)
    typical = float(np.median(np.abs(finite)))
    rungs = [Rung("", "", np.inf, "no rule")]
    for margin in RELATIVE:
        rungs.append(Rung(f"relative-margin:margin={margin:g}", "relative-margin", margin))
    for value in (float(f"{margin * typical:.2g}") for margin in RELATIVE if margin):
        rungs.append(Rung(f"absolute-margin:margin={value:g}", "absolute-margin", value))
    for percentile in PERCENTILES:
        value = float(f"{np.percentile(finite, percentile):.4g}")
        note = f"{percentile}% of the lowest positives score less"
        rungs.append(Rung(f"max-score:score={value:g}", "max-score", value, note))
    known: dict[str, Rung] = {}
    for rung in rungs:
        known.setdefault(rung.rule, rung)
    return list(known.values())


def propose(rungs: Sequence[Rung], k: int, matches: int, target: float | None) -> tuple[Rung | None, str]:
    """(the rung to take, why); None where no rule, or none of these, should be taken.

    `target` asks for the rung that keeps most of the hardest with at most this share of false negatives.
    """
    none, *rules = rungs
    able = [rung for rung in rules if (rung.shares["anchors_with_k"] or 0) >= ENOUGH]
    if target is not None:
        return _to_target(none, able, target)
    if not able:
        return None, (
            f"no rule leaves {k} candidates to {ENOUGH:.0%} of the anchors; search more candidates, or ask for a "
            "smaller --k"
        )
    judged = matches >= _LEAST_MATCHES

    def dropped(rung: Rung) -> tuple[float, float]:
        """(share of what should go that goes, share of what should stay that goes)."""
        if judged:
            gone, lost = rung.shares["false_negatives_dropped"], rung.shares["true_negatives_dropped"]
        else:
            gone, kept = rung.shares["positives_dropped"], rung.shares["hardest_kept"]
            lost = None if kept is None else 1 - kept
        return (0.0, 0.0) if gone is None or lost is None else (gone, lost)

    best = max(able, key=lambda rung: (dropped(rung)[0] - dropped(rung)[1], rung.hardest))
    gone, lost = dropped(best)
    right = "true negatives" if judged else f"the {k} hardest candidates"
    wrong = "false negatives" if judged else "what scores like a positive"
    basis = "by the judged pairs" if judged else "assuming that false negatives score like positives"
    if 0 < matches < _LEAST_MATCHES:
        basis += f" ({matches} judged matches among the {k} hardest are too few to go by; it takes {_LEAST_MATCHES})"
    if gone - lost < WORTH:
        return None, f"no threshold on the score tells {wrong} from {right}, {basis}: judge pairs, or ask another model"
    return best, f"it drops {gone:.0%} of {wrong} and {lost:.0%} of {right}, the widest difference here, {basis}"


def _to_target(none: Rung, able: Sequence[Rung], target: float) -> tuple[Rung | None, str]:
    if none.false_negatives is None:
        raise BadInput("--target needs judged pairs among the candidates: give --judgements that hold some.")
    if none.false_negatives.share <= target:
        return None, f"no rule is needed: {none.false_negatives.share:.1%} of the negatives are false already"
    fitting = [rung for rung in able if rung.false_negatives is not None and rung.false_negatives.share <= target]
    if not fitting:
        known = ((rung.false_negatives, rung.rule or "no rule") for rung in (none, *able))
        share, rule = min((false.share, rule) for false, rule in known if false is not None)
        return None, f"no rule here gets down to {target:.1%} false negatives; the least is {share:.1%}, {rule}"
    best = max(fitting, key=lambda rung: rung.hardest)
    assert best.false_negatives is not None
    return best, (
        f"of the rules with at most {target:.1%} false negatives by the judged pairs it keeps most of the hardest; "
        f"{best.false_negatives.share:.1%} are left (95%: {best.false_negatives.low:.1%} to "
        f"{best.false_negatives.high:.1%})"
    )
