"""The data formats and their settings, as their own files say it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["WithFormats", "described", "first_lines"]

_PLACE = Path(__file__).parents[1] / "data"


def first_lines() -> Iterator[tuple[str, str]]:
    """(name, first line of the docstring) of every format; none is imported, so that --help is quick."""
    for path in sorted(_PLACE.glob("[!_]*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield path.stem, said.partition("\n")[0]


def described(name: str) -> str:
    """What a format reads and every setting with its default. Raises BadInput for an unknown one."""
    from trainer import registry

    module = registry.module("trainer.data", name)
    config = module.Config
    lines = [inspect.cleandoc(module.__doc__ or ""), "", f"Settings, as {name}:KEY=VALUE,..."]
    # Those of the classes that it derives from are explained there.
    lines += [
        inspect.cleandoc(owner.__doc__)
        for owner in config.__mro__
        if owner.__module__.startswith("trainer.") and owner.__dict__.get("__doc__")
    ]
    lines.append("")
    for key, setting in config.model_fields.items():
        default = "must be given" if setting.is_required() else f"[default: {setting.get_default()}]"
        lines.append(f"  {key:<18} {default}")
    return "\n".join(lines)


class WithFormats(click.Command):
    """A command whose help ends with the formats."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Formats, each with its settings in `trainer data formats NAME`"):
            formatter.write_dl(list(first_lines()))
        super().format_epilog(ctx, formatter)
