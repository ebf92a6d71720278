"""Rules that drop candidates that may be false negatives, or teach nothing. A rule is one file here.

Config                       a frozen dataclass of settings (see `miner.spoken`); ValueError for a bad one
FILES                        where it has any: the settings that are paths of files
LAST                         where it is True: no rule may follow
OPPOSITE                     where it is True: it needs the candidates of the other direction
CONTENTS                     where it has any: the sides whose texts or pictures it looks at
REASONS                      where it has several: (setting, its values but for the first), each a rule of its own
prepare(config, context)     a Judge: given candidates of some anchors, (anchors, width) booleans, True drops

What a rule says of an anchor and a candidate depends on these two and on what `prepare` has fixed, never on the block
in which they are shown. What must be known of all candidates is known from those that were searched first.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from miner import spoken
from miner.artifacts.candidates import Candidates
from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import digest_file
from miner.artifacts.negatives import NegativeBlock
from miner.artifacts.pairs import Direction, Pairs, Side, Within

__all__ = ["DEFAULT", "Chosen", "Context", "Judge", "Rule", "by_verdicts", "chosen"]

Rows = npt.NDArray[np.int64]
Judge = Callable[[NegativeBlock, int], npt.NDArray[np.bool_]]
"""Candidates of some anchors, -1 where there is none, and the rank of the first column -> which to drop."""

DEFAULT = ("look-alike:share=0.25",)
"""What `--rule default` stands for: see benchmarks/false_negatives.py."""


@dataclass(frozen=True)
class Context:
    """What a rule may look at.

    `k` negatives are wanted of every anchor. `depths` are how deep an anchor is searched, one after the other, while it
    has fewer: the first is that of the candidates. `vectors` are (items, dim) by side and row of `pairs`; their inner
    product is the score. `survivors(n)` are the candidates that the rules before this one leave, block by block, with
    -1 in place of all others: the first n of every anchor, or all of them (None). `deeper(anchor_rows, depth)` is the
    same of some anchors, searched to another of the `depths`. `candidates(direction)` are those of a direction, None
    where they were not searched. `contents(side)` are what the user says an item's text is, or the path of its picture,
    by row; raises BadInput where nobody said.
    """

    pairs: Pairs
    direction: Direction | Within
    k: int
    depths: tuple[int, ...]
    vectors: Mapping[Side, npt.NDArray[np.floating[Any]]]
    survivors: Callable[[int | None], Iterator[NegativeBlock]]
    deeper: Callable[[Rows, int], NegativeBlock]
    candidates: Callable[[Direction | Within], Candidates | None]
    contents: Callable[[Side], Sequence[str]]
    threads: int = 1


class Rule(Protocol):
    """A module of this package."""

    Config: type[Any]

    def prepare(self, config: Any, context: Context) -> Judge: ...


@dataclass(frozen=True)
class Chosen:
    """A rule with its settings; `name` tells it from the others it was chosen with, and is its reason in reports."""

    name: str
    rule: Rule
    config: Any

    @property
    def last(self) -> bool:
        return bool(getattr(self.rule, "LAST", False))

    @property
    def opposite(self) -> bool:
        return bool(getattr(self.rule, "OPPOSITE", False))

    @property
    def contents(self) -> tuple[Side, ...]:
        """The sides whose texts or pictures it looks at."""
        return tuple(getattr(self.rule, "CONTENTS", ()))

    def settings(self) -> dict[str, Any]:
        """Every setting as JSON takes it; a file by its name and hash. Raises BadInput for a file that is not there."""
        return {
            "rule": _name_of(self.rule),
            **{
                field.name: self._setting(field.name, getattr(self.config, field.name)) for field in fields(self.config)
            },
        }

    def _setting(self, name: str, value: Any) -> Any:
        if name in getattr(self.rule, "FILES", ()) and value:
            path = Path(value)
            if not path.is_file():
                raise BadInput(f"{path}: no such file; rule {self.name} needs the one that its {name} names.")
            return {"name": path.name, "sha256": digest_file(path)}
        return value if not isinstance(value, float) or np.isfinite(value) else str(value)


def chosen(said: Sequence[str]) -> tuple[Chosen, ...]:
    """`["relative-margin:margin=0.1", "default"]` as rules, in this order.

    Raises BadInput for an unknown rule or setting, the same rule twice with the same settings, and one that another
    follows but must be the last.
    """
    wanted = [each for one in said for each in (DEFAULT if one == "default" else (one,))]
    found = [spoken.configured(sys.modules[__name__], "rule", each) for each in wanted]
    times = Counter(rule.__name__ for rule, _ in found)
    rules: list[Chosen] = []
    for rule, config in found:
        name = _name_of(rule)
        if times[rule.__name__] > 1:
            name += ":" + ",".join(f"{field.name}={getattr(config, field.name)}" for field in fields(config))
        if name in (each.name for each in rules):
            raise BadInput(f"rule {name} is given twice; give it once, or with other settings.")
        if rules and rules[-1].last:
            raise BadInput(f"rule {rules[-1].name} shares out what the other rules leave; give it as the last --rule.")
        rules += _by_reason(Chosen(name, cast(Rule, rule), config))
    return tuple(rules)


def by_verdicts(path: Path) -> tuple[Chosen, ...]:
    """The rules by which a file of verdicts is honoured, whatever its path is called."""
    from miner.filters import verdicts

    return tuple(_by_reason(Chosen("verdicts", cast(Rule, verdicts), verdicts.Config(str(path)))))


def _by_reason(rule: Chosen) -> list[Chosen]:
    """One rule for each of its reasons, unless one alone was asked for."""
    setting, reasons = getattr(rule.rule, "REASONS", ("", ()))
    if not reasons or getattr(rule.config, setting) in reasons:
        return [rule]
    return [Chosen(f"{rule.name}:{reason}", rule.rule, replace(rule.config, **{setting: reason})) for reason in reasons]


def _name_of(rule: Any) -> str:
    return str(rule.__name__).rpartition(".")[2].replace("_", "-")
