"""Which shards are tried again after the process at work on them was lost, and which are left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from miner.artifacts.errors import BadInput, Retryable

__all__ = ["FINISH", "TRIES", "Quarantine"]

TRIES = 3
FINISH = -1  # stands for putting the parts together, where others stand for a shard
_MOST_LEFT_OUT = 8  # with more, it is not the rows: the stage is given up
_MOST_LOST = 10  # of one shard, whoever is to blame
_SHOWN = 5


@dataclass
class Quarantine:
    """What was lost of one stage. `stage` is its name, `cpus` the key of [executor] that says how large its actors are;
    empty for a stage without shards, for which there is none.

    A node that is gone is nobody's fault: what was lost on it does not count against the shard, even if that became
    known later. But no shard is tried more than a bounded number of times.
    """

    stage: str
    cpus: str
    left_out: list[int] = field(default_factory=list)
    _lost: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # shard -> (node, what was seen) each time

    def note(self, shard: int, node: str, seen: str, alive: Collection[str]) -> bool:
        """Whether `shard`, lost on `node`, is to be tried again; `alive` are the nodes that are up now.

        Raises Retryable for a shard whose node is lost again and again.
        """
        lost = self._lost.setdefault(shard, [])
        lost.append((node, seen))
        if sum(node in alive for node, _ in lost) >= TRIES:
            self.left_out.append(shard)
            return False
        if len(lost) >= _MOST_LOST:
            raise Retryable(
                f"{self.stage}: {_named(shard)} was lost {len(lost)} times, mostly with the node it was on; see "
                "why nodes of this cluster go away, then run the same command again: what is finished is kept."
            )
        return True

    @property
    def hopeless(self) -> bool:
        """Whether so many shards are left out that the others need not be tried."""
        return len(self.left_out) > _MOST_LEFT_OUT

    def error(self, finished: int, where: Callable[[int], str]) -> BadInput:
        """What is left out, in a sentence. `where(shard)` says which rows that is; `finished` others are on disk."""
        less = (
            f"fewer at once on a node need less: a higher [executor] {self.cpus}" if self.cpus else "take a larger node"
        )
        logs = (
            "Ray's logs on that node (worker-*-PID.err) hold the last words of a process; where memory is short, "
            f"{less}."
        )
        if self.left_out == [FINISH]:
            seen = self._lost[FINISH][-1][1]
            what = _named(FINISH) if self.cpus else "it"
            return BadInput(
                f"{self.stage}: {what} failed {TRIES} times: {seen}. {logs} Then run the same command again."
            )
        shown = sorted(self.left_out)[:_SHOWN]
        each = "; ".join(f"{_named(shard)}, {where(shard)}: {self._lost[shard][-1][1]}" for shard in shown)
        count, more = len(self.left_out), len(self.left_out) - len(shown)
        return BadInput(
            f"{self.stage}: {count} shard{'s were' if count > 1 else ' was'} left out after {TRIES} failures each, "
            f"{finished} finished and kept. Left out: {each}{f'; and {more} more' if more else ''}. Look at these "
            f"rows. {logs} Then run the same command again: it goes on with what is left."
        )


def _named(shard: int) -> str:
    return "putting the shards together" if shard == FINISH else f"shard {shard}"
