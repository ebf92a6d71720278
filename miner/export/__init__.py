"""Negative tables in the layouts that other trainers read. A layout is one file here, and its module name its name.

SUFFIX                       what the name of the exported file must end in: some loaders pass over any other
Config                       a frozen dataclass of settings: bool, str or Literal, all with defaults
files(config, out)           every file it writes, `out` last
write(config, mined, drafts) write to drafts[path] what shall be at path; gives the number of rows
read_with(config, out)       what a user types next
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, get_origin, get_type_hints

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
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def layout(name: str) -> Layout:
    """The layout of a name. Raises BadInput for an unknown one, with the nearest."""
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise BadInput(f"{name!r} is not one of the formats: {', '.join(names())}.{hint}")
    return cast(Layout, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def configured(spoken: str) -> tuple[Layout, Any]:
    """`sentence-transformers:layout=triplet,scores=true` as its layout and its `Config`. Raises BadInput."""
    name, _, rest = spoken.partition(":")
    chosen = layout(name)
    kinds = get_type_hints(chosen.Config)
    known = [field.name for field in fields(chosen.Config)]
    settings: dict[str, Any] = {}
    for assignment in filter(None, rest.split(",")):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise BadInput(f"{spoken!r}: {assignment!r} is not KEY=VALUE; write NAME:KEY=VALUE,KEY=VALUE.")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known) or 'none'}."
            raise BadInput(f"format {name}: {key!r} is not a setting; {hint}")
        if key in settings:
            raise BadInput(f"{spoken!r}: {key} is set twice; set it once.")
        settings[key] = _value(f"format {name}: {key} = {value!r}", value, kinds[key])
    return chosen, chosen.Config(**settings)


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


def _value(where: str, text: str, kind: Any) -> Any:
    """A setting's value by the type of its field."""
    choices = {"true": True, "false": False} if kind is bool else {}
    if get_origin(kind) is Literal:
        choices = {choice: choice for choice in get_args(kind)}
    if choices and text not in choices:
        nearest = difflib.get_close_matches(text, list(choices), 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise BadInput(f"{where} is not one of {', '.join(choices)}.{hint}")
    return choices[text] if choices else text
