"""`pipelines verify`: hash everything in a run folder again."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import click

from miner.artifacts.completion import places

__all__ = ["verify"]


@click.command()
@click.argument("run_dir", shell_complete=places)
@click.option("--stage", "stages", multiple=True, help="Only this stage: mine, mine-i2t, fit, pairs, ...; repeatable.")
@click.option("--round", "rounds", multiple=True, type=click.IntRange(min=0), help="Only this round; repeatable.")
@click.option("--threads", type=click.IntRange(1, 64), help="Files hashed at once.  [default: one per core, at most 8]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def verify(
    ctx: click.Context,
    run_dir: str,
    stages: tuple[str, ...],
    rounds: tuple[int, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Hash every file of every artifact in RUN_DIR again, and say what is not what was committed.

    \b
    Examples:
      pipelines verify runs/demo
      pipelines verify runs/demo --round 2 --stage mine --stage fit
      pipelines verify s3://bucket/runs/nightly --json

    RUN_DIR is a path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Artifacts of older settings are looked at too. Also
    checked: the manifests' own fingerprints, that what each artifact was made from is there, and which files no
    manifest lists. Nothing is changed. One line per finding; "note" harms nobody, "damaged" ends with exit code 4.
    """
    from miner.artifacts.errors import BadInput
    from miner.memory import readable
    from pipelines.places import place
    from pipelines.verification import Meter, verify

    store = place(run_dir)
    shown = sys.stderr.isatty()
    meter = Meter(_bar if shown else _line, 0.2 if shown else 10.0)
    report = verify(store, stages, rounds, threads or min(8, os.cpu_count() or 1), meter)
    if shown and meter.done:
        click.echo("\r\x1b[K", nl=False, err=True)
    wanted = " ".join([*(f"--stage {each}" for each in stages), *(f"--round {each}" for each in rounds)])
    # What lies about in a folder makes it no run; what a kill left of a stage is something to tell of it.
    if not report.artifacts and not (report.findings if wanted else report.damaged):
        raise BadInput(
            f"{store.url}: no artifact {f'of {wanted} ' if wanted else ''}is here; look with pipelines status."
        )
    if as_json:
        about = {"run_dir": store.url, "damaged": report.damaged, **asdict(report)}
        click.echo(json.dumps(about, indent=1))
    else:
        for finding in report.findings:
            click.echo(str(finding))
        damage = sum(finding.damage for finding in report.findings)
        click.echo(
            f"{store.url}: {report.artifacts} artifacts, {report.files} files, {readable(report.bytes)} in "
            f"{report.seconds:.1f} s: " + (f"{damage} damaged." if damage else "all as committed.")
        )
    ctx.exit(4 if report.damaged else 0)


def _told(done: int, total: int, seconds: float) -> str:
    from miner.memory import readable

    rate = done / max(seconds, 1e-9)
    left = max(0, total - done) / max(rate, 1e-9)
    return f"{readable(done)} of {readable(total)}, {readable(rate)}/s, {left:.0f} s left"


def _bar(done: int, total: int, seconds: float) -> None:
    click.echo(f"\r\x1b[K{_told(done, total, seconds)}", nl=False, err=True)


def _line(done: int, total: int, seconds: float) -> None:
    click.echo(_told(done, total, seconds), err=True)
