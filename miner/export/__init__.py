"""Negative tables in the layouts that other trainers read. A layout is one file here, and its module name its name.

SUFFIX                       what the name of the exported file must end in: some loaders pass over any other
Config                       a frozen dataclass of settings: bool, str or Literal, all with defaults
files(config, out)           every file it writes, `out` last
write(config, mined, drafts) write to drafts[path] what shall be at path; gives the number of rows
read_with(config, out)       what a user types next
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from miner import spoken
from miner.artifacts.errors import BadInput
from miner.export._files import appearing, refuse_existing
from miner.export._mined import Mined

__all__ = ["Layout", "Mined", "configured", "files_of", "layout", "names", "write"]


class Layout(Protocol):
    """A module of this package."""

    SUFFIX: str
    Config: type[Any]

    def files(self, config: Any, out: Path) -> tuple[Path, ...]: ...

    def write(self, config: Any, mined: Mined, drafts: Mapping[Path, Path]) -> int: ...

    def read_with(self, config: Any, out: Path) -> str: ...


def names() -> list[str]:
    """Names of the layouts."""
    return spoken.names(sys.modules[__name__])


def layout(name: str) -> Layout:
    """The layout of a name. Raises BadInput for an unknown one, with the nearest."""
    return cast(Layout, spoken.module(sys.modules[__name__], "format", name))


def configured(said: str) -> tuple[Layout, Any]:
    """`sentence-transformers:layout=triplet,scores=true` as its layout and its `Config`. Raises BadInput."""
    chosen, config = spoken.configured(sys.modules[__name__], "format", said)
    return cast(Layout, chosen), config


def files_of(chosen: Layout, config: Any, out: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Every file that a layout writes for `out`. Raises BadInput when one may not be written."""
    if out.suffix != chosen.SUFFIX:
        raise BadInput(f"{out}: give a name that ends in {chosen.SUFFIX}, as the readers of this format expect.")
    files = chosen.files(config, out)
    refuse_existing(files, force=force)
    return files


def write(chosen: Layout, config: Any, mined: Mined, files: Sequence[Path], *, force: bool = False) -> int:
    """Write the files of a layout, all of them or none; gives the number of rows.

    Raises BadInput when one exists, without `force`, or when not a single row is left.
    """
    with appearing(files, force=force) as drafts:
        rows = chosen.write(config, mined, drafts)
        if not rows:
            raise BadInput(f"{mined.where}: nothing is left to export: {mined.tally.left_out_as_text()}.")
    return rows
