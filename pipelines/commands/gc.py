"""`pipelines gc`: delete what a run folder no longer needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from miner.artifacts.completion import places

if TYPE_CHECKING:
    from miner.artifacts.store import Store
    from pipelines.garbage import Item

__all__ = ["gc"]


@click.command()
@click.argument("run_dir", shell_complete=places)
@click.option("--delete", "really", is_flag=True, help="Do it.  [default: only say what would go]")
@click.option(
    "--keep-rounds",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep embeddings and indexes of the newest N rounds alone.  [default: of all]",
)
@click.option("--keep-embeddings", is_flag=True, help="With --keep-rounds: of older rounds only the indexes go.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def gc(run_dir: str, really: bool, keep_rounds: int | None, keep_embeddings: bool, as_json: bool) -> None:
    """List, and with --delete remove, what no round of RUN_DIR needs any more.

    \b
    Examples:
      pipelines gc runs/demo                                  what can go, and how much that is
      pipelines gc runs/demo --delete
      pipelines gc runs/demo --keep-rounds 1 --delete         embeddings and indexes of the last round alone
      pipelines gc s3://bucket/runs/nightly --keep-rounds 2 --json

    What goes: artifacts of older settings once a newer one has taken their place, parts of finished stages, what killed
    writers left, and with --keep-rounds embeddings and indexes of older rounds. What stays: all that the last settings
    use, all that it was made from, everything of a stage that is still to do, and files that no run wrote.
    Checkpoints, tables, metrics and the page of every round stay.

    `pipelines run` then does nothing new; if settings change, embeddings that are needed again are made again. After a
    kill, the same command goes on. Refused while a run writes here (exit code 5), or where a manifest is damaged.
    """
    from miner.artifacts.errors import BadInput
    from miner.memory import readable
    from pipelines import garbage, loop
    from pipelines.places import guarded, only_writer, place

    if keep_embeddings and keep_rounds is None:
        raise click.UsageError("--keep-embeddings says what of older rounds stays; give --keep-rounds N as well.")
    store = place(run_dir)
    loop.saved_settings(store)
    if loop.saved_data(store) is None:
        raise BadInput(f"{store.url}: the training pairs are missing; run `pipelines run` again before gc.")
    if really:
        with only_writer(store) as check:
            store = guarded(store, check)
            items = _items(store, keep_rounds, keep_embeddings)
            garbage.delete(store, items, check, lambda item: _say(item, really, as_json))
    else:
        garbage.refuse_while_running(store)
        items = _items(store, keep_rounds, keep_embeddings)
        for item in items:
            _say(item, really, as_json)
    known = sum(item.bytes or 0 for item in items)
    if as_json:
        rows = [{"where": i.where, "files": len(i.names), "bytes": i.bytes, "why": i.why} for i in items]
        click.echo(json.dumps({"run_dir": store.url, "deleted": really, "bytes": known, "items": rows}, indent=1))
        return
    more = " and what the store does not tell the size of" if any(item.bytes is None for item in items) else ""
    if not items:
        click.echo(f"{store.url}: nothing can go.")
    elif really:
        click.echo(f"{store.url}: deleted {readable(known)}{more}.")
    else:
        click.echo(f"{store.url}: {readable(known)}{more} can go; --delete removes it.")


def _items(store: Store, keep_rounds: int | None, keep_embeddings: bool) -> list[Item]:
    from pipelines import garbage, loop
    from pipelines.contents import look

    settings, data = loop.saved_settings(store), loop.saved_data(store)
    assert data is not None
    # First the plan, whose manifests are all there in what is looked at afterwards.
    # A rule of [stop] may be lifted again, so all rounds count; and beside them the page of a run that is stopped.
    steps = loop.steps_of(settings, data, store, lifted=True)
    folders = {step.stage.folder for step in steps}
    steps += [step for step in loop.steps_of(settings, data, store) if step.stage.folder not in folders]
    return garbage.collect(look(store), steps, keep_rounds, keep_embeddings)


def _say(item: Item, really: bool, as_json: bool) -> None:
    from miner.memory import readable

    size = "size not known" if item.bytes is None else readable(item.bytes)
    files = f"{len(item.names)} file{'s' if len(item.names) != 1 else ''}"
    line = f"{'deleted' if really else 'can go'}: {item.where} ({files}, {size}): {item.why}"
    click.echo(line, err=as_json)
