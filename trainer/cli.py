"""The command `trainer`: fit, encode, evaluate, analyze, and what other packages plug in (compare)."""

from __future__ import annotations

import os
from typing import cast

import click

from miner import __version__
from miner.artifacts import completion
from miner.artifacts.command import CommandGroup
from trainer.commands.analyze import analyze
from trainer.commands.data import data
from trainer.commands.encode import encode
from trainer.commands.evaluate import evaluate
from trainer.commands.fit import fit
from trainer.plugins import plugged_in

__all__ = ["main"]


class _Pluggable(CommandGroup):
    """Also offers the commands that are registered under the entry points `quintain.trainer.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *plugged_in("commands")})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        found = plugged_in("commands").get(cmd_name) if own is None else None
        return own if found is None else cast(click.Command, found.load())


@click.group(cls=_Pluggable)
@click.version_option(__version__, prog_name="quintain")
def main() -> None:
    """Train, encode, evaluate and analyze an image-text retrieval model on one machine; compare objectives.

    \b
    Examples, a round of hard-negative mining by hand:
        trainer fit --data emoji --out runs/model0
        trainer encode --data emoji --checkpoint runs/model0 --out runs/vectors
        miner mine runs/vectors --k 50 --out runs/negatives
        trainer fit --data emoji --quintuplet --negatives runs/negatives --start runs/model0 --out runs/model1
        trainer evaluate --data emoji --checkpoint runs/model1

    \b
    Which objective, and why:
        trainer compare --demo --out runs/compare
        trainer analyze --data emoji --checkpoint runs/model1 --loss ntxent --loss triplet --out runs/counts

    `pipelines run` does a whole loop, for several rounds and on many machines.
    """
    # Threads that wait by spinning take the cores from whoever else is on the machine: measured, a step of 0.1 s took
    # 1.4 s beside another job. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


for command in (fit, encode, evaluate, analyze, data, completion.command("trainer", main)):
    main.add_command(command)


if __name__ == "__main__":
    main()
