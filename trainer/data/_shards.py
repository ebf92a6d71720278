"""Tar shards: which files a pattern names, and where the members of every sample lie."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from miner.artifacts.errors import BadInput

__all__ = ["Sample", "expanded", "samples"]

_MEMBER = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Sample:
    """Members of one name up to the first dot: (first byte, bytes) by the rest of their name, in lower case."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]
    file: IO[bytes]

    @property
    def where(self) -> str:
        return f"{self.shard}, {self.key}"

    def text(self, extension: str) -> str | None:
        """A member as text, None when there is none. Raises BadInput unless it is UTF-8."""
        if extension not in self.members:
            return None
        start, size = self.members[extension]
        self.file.seek(start)
        try:
            return self.file.read(size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{self.where}.{extension}: not UTF-8 text ({error.reason} at byte {error.start})."
            ) from error


def expanded(pattern: str) -> Iterator[str]:
    """A pattern for every choice in its braces, {a,b} or {000..012}."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(braces[1])
    choices = braces[1].split(",")
    if numbers:
        choices = [f"{one:0{len(numbers[1])}}" for one in range(int(numbers[1]), int(numbers[2]) + 1)]
    for choice in choices:
        yield from expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])


def samples(shard: Path) -> Iterator[Sample]:
    """The samples of a shard, which is gone through once. Raises BadInput when it is compressed, damaged or cut."""
    with open(shard, "rb") as file:
        for key, members in _members(shard, file).items():
            yield Sample(shard, key, members, file)


def _members(shard: Path, file: IO[bytes]) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                named = _MEMBER.fullmatch(member.name)
                if named is None or not member.isreg() or member.issparse():
                    continue
                members = found.setdefault(named[1], {})
                if named[2].lower() in members:
                    raise BadInput(f"{shard}: {member.name} is there twice; rename one.")
                members[named[2].lower()] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as broken:
        raise BadInput(
            f"{shard}: not a readable tar file ({broken}); shards must be whole, and not compressed: unpack a .tar.gz."
        ) from broken
    # tarfile takes whatever is no header for the end, and would leave out what follows.
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise BadInput(f"{shard}: cut short, the mark at the end of a tar file is missing; write or download it again.")
    while mark:
        if mark.strip(b"\0"):
            raise BadInput(
                f"{shard}: something follows its end at byte {end}: a header there is damaged, or another tar file was "
                "appended; write or download it again, as one tar file."
            )
        mark = file.read(2**20)
    return found
