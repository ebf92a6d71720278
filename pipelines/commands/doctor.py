"""`pipelines doctor`: is this machine, and this place, fit for a run?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

__all__ = ["doctor"]


@click.command()
@click.argument("place", metavar="[RUN_DIR_OR_URL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def doctor(ctx: click.Context, place: str | None, as_json: bool) -> None:
    """Check this machine and the place where a run is to live; one line per check, and what to do.

    \b
    Examples:
      pipelines doctor
      pipelines doctor runs/demo
      pipelines doctor s3://bucket/runs/nightly --json

    Looked at are Python, packages and their versions, torch, CUDA and GPUs, faiss, Ray and its token (never shown),
    /dev/shm, memory, open files, cores, clock, encoding; of a place, the current folder by default: free disk, and
    whether what is written there is atomic, durable and of one writer. What that leaves there is removed.

    Exit code 0 when nothing is a problem, 3 otherwise; warnings are none.
    """
    from miner.artifacts.locations import open_store
    from pipelines import machine, storage

    # An object store that does not answer is a finding, not worth a minute per question.
    where = place if place and "://" in place else str(Path(place or ".").resolve())
    store = open_store(where, patience=5.0)
    checks = []
    for source in (machine.look(), storage.look_at(store)):
        for check in source:
            checks.append(check)
            if not as_json:
                line = f"{check.state:<8} {check.name}: {check.found}"
                click.echo(line + (f"\n{'':<8} -> {check.do}" if check.do else ""))
    state = machine.worst(checks)
    if as_json:
        click.echo(json.dumps({"place": store.url, "state": state, "checks": [asdict(c) for c in checks]}, indent=1))
    ctx.exit(3 if state == "problem" else 0)
