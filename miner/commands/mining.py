"""What `miner mine` does on a folder and `miner.mine` on arrays: check what was asked, search, choose, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miner.commands.filter import Filtering, filter_direction
from miner.commands.search import Search, width, with_opposites
from miner.commands.shown import ALOUD, Voice

if TYPE_CHECKING:
    from miner.artifacts.pairs import Direction, Side, Within
    from miner.commands.stored import StoredIndex
    from miner.filters import Chosen
    from miner.folder import Folder

__all__ = ["Mining"]


@dataclass(frozen=True)
class Mining:
    """What was asked for. `texts` and `images` are tables of what items are, for rules that look at it; `at_hand` says
    the same by row."""

    opened: Folder
    directions: list[Direction | Within]
    k: int
    rules: Sequence[Chosen] = ()
    num_candidates: int | None = None
    max_candidates: int | None = None
    metric: str = "ip"
    memory: int | None = None
    texts: Path | None = None
    images: Path | None = None
    at_hand: Mapping[Side, Sequence[str]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise BadInput for what cannot be mined, before anything is."""
        from miner.artifacts.errors import BadInput
        from miner.nearest import check_k

        if self.max_candidates and not self._choosing:
            raise BadInput(
                "--max-candidates bounds how deep rules are searched for; give a --rule too, or leave it out."
            )
        for each in self.directions:
            check_k(self.opened.pairs, each, self.k)
        if self.num_candidates is not None and self.num_candidates < self.k:
            raise BadInput(
                f"--num-candidates {self.num_candidates} are fewer than the {self.k} negatives wanted; give at least "
                f"{self.k}."
            )
        if self.max_candidates is not None and self.max_candidates < (searched := self._width()):
            raise BadInput(
                f"--max-candidates {self.max_candidates}, but {searched} are searched for every anchor; give no fewer."
            )
        self._width()
        self._filtering({}, 1, None).check()

    def write(
        self,
        out: Path,
        threads: int,
        indexes: Mapping[Side, StoredIndex] | None = None,
        deeper: Callable[..., Any] | None = None,
        voice: Voice = ALOUD,
    ) -> None:
        """One table per direction below `out`, which the caller holds; with rules, out/candidates beside them.

        Through `indexes` where there are any, `deeper` being how one is searched deeper; else everything is compared.
        """
        from miner.plan import Choosing

        choosing = Choosing(self.rules, self.k, self.directions) if self._choosing else None
        search = Search(self.opened, out, self.metric, indexes or {}, threads, self.memory, choosing, voice)
        if choosing is None:
            search.tables(self.directions, self.k)
            return
        candidates = search.candidates(with_opposites(self.directions, self.rules), self._width())
        filtering = self._filtering(candidates, threads, deeper)
        for each in self.directions:
            filter_direction(out, filtering, each, voice)

    @property
    def _choosing(self) -> bool:
        return bool(self.rules) or self.num_candidates is not None

    def _width(self) -> int:
        wanted = with_opposites(self.directions, self.rules)
        return width(self.opened, wanted, self.k, self.num_candidates, self.rules)

    def _filtering(self, candidates: Any, threads: int, deeper: Callable[..., Any] | None) -> Filtering:
        return Filtering(
            self.opened,
            candidates,
            self.rules,
            self.k,
            self.max_candidates,
            texts=self.texts,
            images=self.images,
            threads=threads,
            deeper=deeper,
            at_hand=self.at_hand,
        )
