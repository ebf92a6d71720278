"""`pipelines schedule`: one idempotent command as the schedulers of a platform want it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import click

from miner.artifacts.command import LocalPath
from miner.artifacts.completion import places

__all__ = ["schedule"]

_PLACE = Path(__file__).parents[1] / "schedules"
# The files of pipelines/schedules, none of which --help imports.
_KINDS = {path.stem: path for path in sorted(_PLACE.glob("[!_]*.py"))}


class _WithKinds(click.Command):
    """Its help ends with the schedulers, as their files say it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("KIND"):
            formatter.write_dl([(name, _first_line(path)) for name, path in _KINDS.items()])
        super().format_epilog(ctx, formatter)


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


@click.command(cls=_WithKinds)
@click.argument("kind", metavar="KIND", type=click.Choice(list(_KINDS)))
@click.argument("run_file")
@click.option(
    "--run-dir",
    required=True,
    shell_complete=places,
    help="Where the run lives; a shared folder, or s3://BUCKET/PREFIX.",
)
@click.option(
    "--at", required=True, metavar="CRON", help='When: minute, hour, day of month, month, day of week; "0 2 * * *".'
)
@click.option("--name", default="quintain", show_default=True, help="What the schedule and its jobs are called.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Ray workers: pods, or nodes of Slurm.  [default: kubernetes 2, slurm 1; cron, airflow: one per core]",
)
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs of each worker.  [default: kubernetes 4, slurm 8]")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of each worker.  [default: 0]")
@click.option("--memory", help="Memory of each worker.  [default: kubernetes 16G, slurm 32G]")
@click.option("--image", help="Container image with quintain in it (Dockerfile); kubernetes and raycronjob need it.")
@click.option("--namespace", help="Kubernetes namespace.  [default: quintain]")
@click.option("--volume", metavar="CLAIM:/PATH", help="Volume claim and where pods see it.  [default: quintain:/data]")
@click.option("--address", help="cron, airflow: a Ray cluster to join, HOST:PORT, in place of a local one.")
@click.option("--out", type=LocalPath(dir_okay=False), help="File to write.  [default: print it]")
@click.option("--force", is_flag=True, help="Replace the file at --out.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: the command, the schedule and the text.")
def schedule(
    kind: str,
    run_file: str,
    run_dir: str,
    at: str,
    name: str,
    out: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write what KIND of scheduler needs to run RUN_FILE by the clock; starts nothing.

    \b
    Examples:
      pipelines schedule cron run.toml --run-dir runs/nightly --at "0 2 * * *" --out quintain.crontab
      pipelines schedule kubernetes /data/run.toml --run-dir /data/runs/nightly --at "0 2 * * *" \\
          --image registry.example/quintain:1.0 --workers 4 --gpus 1 --memory 32G --out quintain.yaml
      pipelines schedule slurm run.toml --run-dir /shared/runs/nightly --at "0 20 * * 1-5" \\
          --workers 2 --gpus 1 --out quintain.sbatch

    All of them give the same command, `pipelines run`, which goes on where it stopped and does nothing when all is
    done. The text says what to change; tokens and credentials stay in a Secret or an environment file. For kubernetes
    and raycronjob, paths are those inside the image, below --volume. Only times that all schedulers read alike are
    taken.
    """
    from miner.artifacts.errors import BadInput
    from pipelines.resources import head_of
    from pipelines.schedules import configured, job_of, scheduler

    chosen = scheduler(kind)
    config = configured(kind, options)
    if "://" in (options["address"] or ""):
        raise BadInput(
            f"--address {options['address']}: give HOST:PORT of the cluster (6379); its dashboard is for `submit`."
        )
    if options["address"]:
        head_of(options["address"])
    if chosen.PLACE == "machine":
        run_file = str(Path(run_file).absolute())
        run_dir = str(Path(run_dir).absolute()) if run_dir and "://" not in run_dir else run_dir
    job = job_of(chosen.PLACE, name=name, at=at, run_file=run_file, run_dir=run_dir)
    text = chosen.render(job, config)
    _look_at(Path(run_file))
    if out is not None:
        if out.suffix != chosen.SUFFIX:
            raise BadInput(f"{out}: give a name that ends in {chosen.SUFFIX}.")
        if out.exists() and not force:
            raise BadInput(f"{out}: this file exists; --force replaces it.")
        out.write_text(text, encoding="utf-8")
    if as_json:
        about = {"kind": kind, "name": name, "schedule": str(job.at), "command": chosen.command(job, config)}
        click.echo(json.dumps({**about, "out": None if out is None else str(out), "text": text}, indent=1))
    elif out is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{out}: {kind}, {job.at}; its first lines say how to install it and what to change.")


def _look_at(run_file: Path) -> None:
    """Raises BadInput for a run file that is here and wrong; says so when it is not here."""
    from miner.artifacts.errors import BadInput
    from pipelines.settings import Settings

    if run_file.is_dir():
        raise BadInput(f"{run_file}: this is a folder; give the run file (`pipelines init DATA` writes one).")
    if run_file.is_file():
        Settings.load(run_file)
    else:
        click.echo(f"note: {run_file} is not on this machine, so nobody has looked into it.", err=True)
