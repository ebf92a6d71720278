"""How every command line of the project talks: tables in columns; at the end one sentence and an exit code, never a
traceback a user caused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from miner.artifacts import completion
from miner.artifacts.errors import FULL, QuintainError, says_enough
from miner.artifacts.place import Place

__all__ = ["PLACE", "TABLE", "CommandGroup", "LocalPath", "align"]

_EXIT_CODES = "Exit codes: 0 done, 2 wrong usage, 3 bad input, 4 damaged artifact, 5 another writer, 75 try again."


class _Place(click.ParamType[Place]):
    """Where artifacts are read: a folder, s3://bucket/prefix or gs://bucket/prefix."""

    name = "place"

    def __init__(self, files: bool = False) -> None:
        self.files = files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        return Place.of(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return completion.places(ctx, param, incomplete, files=self.files)


PLACE = _Place()
TABLE = _Place(files=True)  # where a file will do, too


class LocalPath(click.Path):
    """A path of this machine. An address would pass for one, and be a folder `s3:` beside whatever is here."""

    def __init__(self, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value!r} is an address; give a path of this machine, and copy what is there.", param, ctx)
        return super().convert(value, param, ctx)


class CommandGroup(click.Group):
    """A click group that turns the error tree of `miner.artifacts.errors` into sentences and exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("epilog", _EXIT_CODES)
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 110})
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `QuintainError` or a disk that cannot be written ends it with one sentence.

        Warnings are shown as sentences too, without the line of code that they come from.
        """
        shown, warnings.showwarning = warnings.showwarning, _warn
        try:
            return super().invoke(ctx)
        except QuintainError as error:
            _end(ctx, str(error), error.exit_code)
        except OSError as error:
            if not says_enough(error):
                raise
            where = f" ({error.filename})" if error.filename else ""
            if error.errno in FULL:
                _end(
                    ctx,
                    f"the disk would not take the data: {error.strerror}{where}. Nothing committed was lost; "
                    "make room and run the same command again.",
                    75,
                )
            _end(ctx, f"{error.strerror}{where}: check that the path exists and may be read and written.", 3)
        finally:
            warnings.showwarning = shown


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _end(ctx: click.Context, sentence: str, code: int) -> None:
    click.echo(f"error: {sentence}", err=True)
    ctx.exit(code)


def align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as columns, the first `left` of them flush left; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
