"""Cron expressions that cron, Kubernetes, RayCronJob, Slurm's scrontab and Airflow all read alike.

That is less than each of them takes: five fields of numbers, names of months and days, lists, ranges and steps. `7` for
Sunday, `5/15`, `L`, `#`, `?`, seconds and @reboot mean something to some of them and are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from miner.artifacts.errors import BadInput

__all__ = ["Expression"]

_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: at for at, name in enumerate(_NAMES, start=1)}
_DAYS = {name: at for at, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONGEST = dict(zip(range(1, 13), (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True))
_PART = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\w+))?", re.ASCII)


@dataclass(frozen=True)
class Expression:
    """`text` is in numbers alone; `values` holds what each of its five fields lets through."""

    text: str
    values: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, said: str) -> Expression:
        """Raises BadInput naming the field that is wrong."""
        parts = _SHORT.get(said.strip().lower(), said).split()
        if len(parts) != len(_FIELDS):
            raise BadInput(
                f"--at {said!r} has {len(parts)} of the five fields minute, hour, day of month, month and day of week; "
                'every night at two is "0 2 * * *".'
            )
        texts, values = [], []
        for part, (name, low, high, words) in zip(parts, _FIELDS, strict=True):
            text, found = _field(said, part, name, low, high, words)
            texts.append(text)
            values.append(tuple(sorted(found)))
        _, _, days, months, _ = values
        if texts[4] == "*" and all(min(days) > _LONGEST[month] for month in months):
            raise BadInput(f"--at {said!r}: the day of month {parts[2]!r} never comes in month {parts[3]!r}.")
        return cls(" ".join(texts), tuple(values))


def _field(said: str, part: str, name: str, low: int, high: int, words: dict[str, int]) -> tuple[str, set[int]]:
    """One field in numbers, and the values it lets through."""
    texts: list[str] = []
    found: set[int] = set()
    for item in part.split(","):
        match = _PART.fullmatch(item)
        if match is None:
            raise BadInput(f"--at {said!r}: {item!r} in the {name} is none of *, a number, a-b, */n or a-b/n.")
        first, last, step = match["first"], match["last"], match["step"]
        if first == "*" and last is None:
            begin, end, text = low, high, "*"
        elif first == "*" or (step is not None and last is None):
            raise BadInput(f"--at {said!r}: {item!r} in the {name} is read differently by schedulers; write a-b/n.")
        else:
            begin = _number(said, first, name, low, high, words)
            end = begin if last is None else _number(said, last, name, low, high, words)
            text = str(begin) if last is None else f"{begin}-{end}"
            if end < begin:
                raise BadInput(f"--at {said!r}: {item!r} in the {name} runs backwards; write a-{high},{low}-b.")
        every = 1
        if step is not None:
            if not step.isdigit() or not 1 <= int(step) <= high:
                raise BadInput(f"--at {said!r}: the step {step!r} in the {name} is not a number from 1 to {high}.")
            every = int(step)
            text += f"/{every}"
        texts.append(text)
        found.update(range(begin, end + 1, every))
    return ",".join(texts), found


def _number(said: str, word: str, name: str, low: int, high: int, words: dict[str, int]) -> int:
    value = words.get(word.lower(), int(word) if word.isdigit() and len(word) <= 2 else None)
    if value is None or not low <= value <= high:
        names = f" or {', '.join(words)}" if words else ""
        sunday = " (0 is Sunday)" if words is _DAYS and word == "7" else ""
        raise BadInput(f"--at {said!r}: {word!r} in the {name} is not {low} to {high}{names}{sunday}.")
    return value
