"""Completion in bash, zsh and fish: the command that prints a shell's script, and what values may be.

Values that are files of a package are listed from their folder: pressing Tab imports neither torch nor faiss nor ray.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = ["Complete", "command", "files_in", "places"]

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_WHERE = {
    "bash": "{program} completion bash > ~/.local/share/bash-completion/completions/{program}",
    "zsh": "{program} completion zsh > ~/.zfunc/_{program}      (a folder of $fpath)",
    "fish": "{program} completion fish > ~/.config/fish/completions/{program}.fish",
}


def files_in(folder: Path, *more: str, dashed: bool = False, settings: bool = False, paths: bool = False) -> Complete:
    """What the files of a package are called, and `more`.

    `dashed`: users write `-` for `_`. `settings`: a colon follows. `paths`: where none fits, any path does.
    """

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        names = sorted(path.stem for path in folder.glob("[!_]*.py"))
        if dashed:
            names = [name.replace("_", "-") for name in names]
        names = [f"{name}:" if settings else name for name in names]
        found = [CompletionItem(name) for name in [*more, *names] if name.startswith(begun)]
        # First: the shells' scripts forget what came before it.
        return [CompletionItem(begun, type="file"), *found] if paths else found

    return complete


def places(
    context: click.Context, parameter: click.Parameter, begun: str, *, files: bool = False
) -> list[CompletionItem]:
    """A folder, with `files` any path, or the beginning of a bucket's address."""
    buckets = [CompletionItem(scheme) for scheme in ("s3://", "gs://") if begun and scheme.startswith(begun)]
    return [CompletionItem(begun, type="file" if files else "dir"), *buckets]


def command(program: str, root: click.Group) -> click.Command:
    """`program completion SHELL`, for the commands of `root`."""
    said = "\n".join(f"      {line.format(program=program)}" for line in _WHERE.values())

    @click.command(
        "completion",
        help=f"Print the script that completes {program} in a shell: commands, options, names, files.\n\n"
        f'\b\nExamples:\n{said}\n\nOr for this shell alone: `eval "$({program} completion bash)"`.',
    )
    @click.argument("shell", type=click.Choice(list(_WHERE)))
    def completion(shell: str) -> None:
        found = get_completion_class(shell)
        assert found is not None
        click.echo(found(root, {}, program, f"_{program.upper()}_COMPLETE").source())

    return completion
