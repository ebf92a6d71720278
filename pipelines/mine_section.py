"""[mine]: how many negatives are kept of each direction, and what they are chosen from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from miner.artifacts.pairs import Direction
from pipelines.kept_verdicts import FOLDER

__all__ = ["ByDirection", "MineConfig", "MineOf"]


class ByDirection(NamedTuple):
    """A number of each direction."""

    i2t: int
    t2i: int


class MineConfig(BaseModel):
    """`k` negatives are kept per anchor; `shard_anchors` anchors make one task.

    `k` and `num_candidates` are numbers of both directions or one of each, { i2t = 300, t2i = 60 }, as a loss may draw
    from pools of unequal size.

    `rules` drop candidates, as `miner mine --rule` takes them: ["default"]. They choose from `num_candidates` per
    anchor [default: 2 k], and the search goes deeper for an anchor that is left with fewer than k.

    An approximate [index] is searched as hard as it takes to find the share `recall` of what is searched for. That is
    chosen on `recall_sample` anchors [default: 1,000] and measured on as many others; the table holds the figure.

    For a cross-attention model, `num_candidates` [default: 4 k, and 200 at least] are searched with its pooled vectors
    and ranked by its own score; for `recall_sample` anchors [default: 100] everything is scored, to tell what that
    search missed. The table holds that figure, so another sample is another table.

    `verdicts` is a file of what people said of negatives (`pipelines serve` writes one): from round `verdicts_from` on,
    what they called false or too easy is dropped, before all rules. The run keeps a copy, so that a file that grows
    meanwhile changes nothing before the next `pipelines run`. `verdicts_sha256` is filled in when a run file is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    k: int | ByDirection = 50
    shard_anchors: int = Field(default=1024, ge=1)
    num_candidates: int | ByDirection | None = None
    recall: float = Field(default=0.95, gt=0, lt=1)
    recall_sample: int | None = Field(default=None, ge=1)
    rules: tuple[str, ...] = ()
    verdicts: str = ""
    verdicts_from: int = Field(default=1, ge=1)
    verdicts_sha256: str = ""

    @field_validator("k", "num_candidates", mode="plain")
    @classmethod
    def _counts(cls, value: Any) -> int | ByDirection | None:
        if value is None or isinstance(value, ByDirection):
            return value
        each = dict(value) if isinstance(value, Mapping) else {"i2t": value, "t2i": value}
        if set(each) != {"i2t", "t2i"} or not all(type(count) is int and count >= 1 for count in each.values()):
            raise ValueError("a whole number from 1 on is needed, or one of each direction: { i2t = 300, t2i = 60 }")
        return ByDirection(**each) if isinstance(value, Mapping) else each["i2t"]

    @field_serializer("k", "num_candidates")
    def _as_given(self, count: int | ByDirection | None) -> int | dict[str, int] | None:
        return count._asdict() if isinstance(count, ByDirection) else count

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        if not rules:
            return rules
        from miner.filters import chosen

        for rule in chosen(rules):
            if any(getattr(rule.config, name) for name in getattr(rule.rule, "FILES", ())):
                raise ValueError(
                    f"rule {rule.name} reads a file, and a run would not notice when it changes; leave it to `miner "
                    "filter`, or for verdicts set mine.verdicts"
                )
            if rule.opposite or "image" in rule.contents:
                needs = "the other direction's candidates" if rule.opposite else "pictures"
                raise ValueError(
                    f"rule {rule.name} needs {needs}, which a run does not have; leave it to `miner filter`"
                )
        return rules

    @property
    def kept_verdicts(self) -> str:
        """Where a run keeps its copy of the verdicts, below its folder; "" without."""
        return f"{FOLDER}/{self.verdicts_sha256}{Path(self.verdicts).suffix}" if self.verdicts_sha256 else ""

    @property
    def selective(self) -> bool:
        """Whether negatives are chosen from candidates."""
        return bool(self.rules or self.verdicts_sha256)

    def of(self, direction: Direction, round: int) -> MineOf:
        """The same for one direction and round: its own numbers, without verdicts that do not hold there."""
        given = dict(self)
        if round < self.verdicts_from:
            given |= {"verdicts": "", "verdicts_sha256": ""}
        for name in ("k", "num_candidates"):
            if isinstance(given[name], ByDirection):
                given[name] = getattr(given[name], direction)
        return MineOf.model_construct(**given)

    def resolved(self, folder: Path) -> MineConfig:
        """The same with the file of verdicts found from `folder`, and hashed. Raises BadInput for what is none."""
        if not self.verdicts:
            return self.model_copy(update={"verdicts_sha256": ""})
        from miner.artifacts.manifest import digest_file
        from miner.verdicts import lines

        path = (folder / self.verdicts).resolve()
        lines(path)
        return self.model_copy(update={"verdicts": str(path), "verdicts_sha256": digest_file(path)})


class MineOf(MineConfig):
    """What `MineConfig.of` gives."""

    k: int
    num_candidates: int | None

    def candidates(self, gallery: int, two_stage: bool = True) -> int:
        """How many candidates are searched per anchor in a gallery of this size, for a second stage or for rules."""
        usual = max(4 * self.k, 200) if two_stage else 2 * self.k
        return min(self.num_candidates or usual, gallery)

    def searched(self, gallery: int, two_stage: bool) -> int:
        """How many are searched per anchor: candidates, or the negatives themselves."""
        if two_stage:
            return self.candidates(gallery)
        return max(self.k, self.candidates(gallery, False)) if self.selective else self.k
