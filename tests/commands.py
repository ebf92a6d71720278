"""The three command lines, every command of them, and parsing what a text says to type without running it."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator

import click

PROGRAMS = {name: importlib.import_module(f"{name}.cli").main for name in ("miner", "trainer", "pipelines")}
_TYPED = re.compile(r"^ *(?:\$ )?((?:miner|trainer|pipelines) .*)$")


def every() -> Iterator[tuple[str, click.Command]]:
    """("trainer data check", the command), groups too."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=path)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from below(f"{path} {name}", found)

    for name, main in PROGRAMS.items():
        yield from below(name, main)


def typed(text: str) -> Iterator[list[str]]:
    """The lines of a text that call one of the programs, as words; a backslash at the end joins the next line."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        found = _TYPED.match(line)
        if found is None:
            continue
        # What is explained beside it, and where its output goes.
        said = re.split(r"\s{3,}(?=[^-\s])|\s[>|]", found[1])[0]
        words = shlex.split(said, comments=True)
        if words[1:2] and words[1] not in ("=", ":", "imports", "reads"):
            yield words


def parse(words: list[str]) -> click.Context:
    """As the program would, up to where its command would begin. Raises click.UsageError."""
    command: click.Command = PROGRAMS[words[0]]
    context, rest = command.make_context(words[0], words[1:]), []
    while isinstance(command, click.Group):
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(command.name, rest, parent=context)
    return context
