"""`NAME:KEY=VALUE,KEY=VALUE`: how a user names a file of a package, and gives the settings of its `Config`.

A package of such files (export's layouts, the filters) has one module per name, `-` in the name being `_` in the
module's; modules that begin with `_` are not among them. `Config` is a frozen dataclass: its fields are bool, int,
float, str or Literal.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from miner.artifacts.errors import BadInput

__all__ = ["Described", "configured", "module", "names"]


def names(package: ModuleType) -> list[str]:
    """What there is in a package, as users call it."""
    found = (each.name for each in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def module(package: ModuleType, what: str, name: str) -> ModuleType:
    """The file of a name; `what` such files are called ("format"). Raises BadInput for an unknown one."""
    known = names(package)
    name = name.replace("_", "-")
    if name not in known:
        raise BadInput(f"{name!r} is not one of the {what}s: {', '.join(known)}.{_nearest(name, known)}")
    return importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")


def configured(package: ModuleType, what: str, spoken: str) -> tuple[ModuleType, Any]:
    """`sentence-transformers:layout=triplet,scores=true` as its module and its `Config`. Raises BadInput."""
    name, _, rest = spoken.partition(":")
    chosen = module(package, what, name)
    kinds = get_type_hints(chosen.Config)
    known = [field.name for field in fields(chosen.Config)]
    settings: dict[str, Any] = {}
    for assignment in filter(None, rest.split(",")):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise BadInput(f"{spoken!r}: {assignment!r} is not KEY=VALUE; write NAME:KEY=VALUE,KEY=VALUE.")
        if key not in known:
            hint = _nearest(key, known, "did").lstrip() or f"known: {', '.join(known) or 'none'}."
            raise BadInput(f"{what} {name}: {key!r} is not a setting; {hint}")
        if key in settings:
            raise BadInput(f"{spoken!r}: {key} is set twice; set it once.")
        settings[key] = _value(f"{what} {name}: {key} = {value!r}", value, kinds[key])
    needed = [field.name for field in fields(chosen.Config) if field.default is MISSING and field.name not in settings]
    if needed:
        raise BadInput(f"{what} {name} needs {', '.join(needed)}; write {name}:{needed[0]}=VALUE.")
    try:
        return chosen, chosen.Config(**settings)
    except ValueError as wrong:
        raise BadInput(f"{what} {name}: {wrong}") from wrong


def _value(where: str, text: str, kind: Any) -> Any:
    """A setting's value by the type of its field."""
    choices: dict[str, Any] = {"true": True, "false": False} if kind is bool else {}
    if get_origin(kind) is Literal:
        choices = {choice: choice for choice in get_args(kind)}
    if choices:
        if text not in choices:
            raise BadInput(f"{where} is not one of {', '.join(choices)}.{_nearest(text, list(choices))}")
        return choices[text]
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError as wrong:
        raise BadInput(f"{where} is not a {'whole number' if kind is int else 'number'}.") from wrong


def _nearest(name: str, known: list[str], did: str = "Did") -> str:
    nearest = difflib.get_close_matches(name, known, 1)
    return f" {did} you mean {nearest[0]!r}?" if nearest else ""


class Described(click.Command):
    """A command whose help ends with what may be named, as the files say it; none is imported.

    A subclass says `section`, the heading, and `place`, the folder of the package.
    """

    section: str
    place: Path

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(self.section):
            formatter.write_dl(list(_described(self.place)))
        super().format_epilog(ctx, formatter)


def _described(place: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(place.glob("[!_]*.py")):
        parsed = ast.parse(path.read_text(encoding="utf-8"))
        config = next(node for node in parsed.body if isinstance(node, ast.ClassDef) and node.name == "Config")
        settings = [_setting(node) for node in config.body if isinstance(node, ast.AnnAssign)]
        said = (ast.get_docstring(parsed) or "").partition("\n")[0]
        yield path.stem.replace("_", "-"), " ".join([said, *settings])


def _setting(node: ast.AnnAssign) -> str:
    """`layout: Literal["a", "b"] = "a"` as `[layout=a|b, default a]`."""
    name, kind, default = (ast.unparse(part) if part else "" for part in (node.target, node.annotation, node.value))
    if isinstance(node.annotation, ast.Subscript):
        kind = "|".join(ast.literal_eval(node.annotation.slice))
    kind = {"bool": "true|false"}.get(kind, name.upper() if kind in ("str", "int", "float") else kind)
    default = default.strip("'").lower()
    return f"[{name}={kind}, default {default}]" if default else f"[{name}={kind}]"
