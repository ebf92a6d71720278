"""One idempotent command, `pipelines run`, as every scheduler wants it. A scheduler is one file here, and its module
name its name.

SUFFIX               what the rendered file's name ends in
PLACE                "machine": paths are those of the machines that run it; "container": those of an image
Config               a frozen dataclass: the options it takes beside the common ones, with their defaults
command(job, config) the command that it runs, as a list of arguments
render(job, config)  the text, with comments that say what to change
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Protocol, cast

from miner.artifacts.errors import BadInput
from miner.artifacts.locations import shown
from pipelines.schedules._expression import Expression
from pipelines.schedules._words import bad_path, dns_name

__all__ = ["Job", "Scheduler", "configured", "job_of", "names", "options", "run_command", "scheduler"]


@dataclass(frozen=True)
class Job:
    """What is to happen, and when. `run_dir` may be a URL (s3://bucket/runs)."""

    name: str
    at: Expression
    run_file: str
    run_dir: str

    def run(self, *, address: str = "", workers: int = 0) -> list[str]:
        """The command: safe to give again at any time, for it goes on where it stopped and else does nothing."""
        return run_command(self.run_file, self.run_dir, address=address, workers=workers)


def run_command(run_file: str, run_dir: str, *, address: str = "", workers: int = 0) -> list[str]:
    """`pipelines run`, on a local Ray cluster or the one at `address`, whatever the run file says of an executor."""
    command = ["pipelines", "run", run_file, "--run-dir", run_dir]
    if address or workers:
        command += ["--executor", "ray"]
    if workers:
        command += ["--workers", str(workers)]
    return command + (["--address", address] if address else [])


class Scheduler(Protocol):
    """A module of this package."""

    SUFFIX: str
    PLACE: Literal["machine", "container"]
    Config: type[Any]

    def command(self, job: Job, config: Any) -> list[str]: ...

    def render(self, job: Job, config: Any) -> str: ...


def names() -> list[str]:
    """Names of the schedulers."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def scheduler(name: str) -> Scheduler:
    """The scheduler of a name out of `names`."""
    assert name in names(), name
    return cast(Scheduler, importlib.import_module(f"{__name__}.{name}"))


def options(chosen: Scheduler) -> list[str]:
    """What a scheduler takes beside the common options."""
    return [field.name for field in fields(chosen.Config)]


def configured(name: str, given: Mapping[str, Any]) -> Any:
    """A scheduler's `Config` from options, of which None is one that was not given. Raises BadInput."""
    chosen = scheduler(name)
    wanted = {key: value for key, value in given.items() if value is not None}
    for key in wanted:
        if key not in options(chosen):
            others = [other for other in names() if key in options(scheduler(other))]
            raise BadInput(f"--{key} is no option of {name}, but of {', '.join(others)}; leave it out.")
    for field in fields(chosen.Config):
        if field.default is MISSING and field.name not in wanted:
            raise BadInput(f"schedule {name} needs --{field.name}; `pipelines schedule --help` says what it is.")
    return chosen.Config(**wanted)


def job_of(place: str, *, name: str, at: str, run_file: str, run_dir: str) -> Job:
    """A job whose every part is checked. Raises BadInput naming the part."""
    for what, path in (("RUN_FILE", run_file), ("--run-dir", run_dir)):
        wrong = bad_path(path, url=what == "--run-dir")
        if wrong:
            where = " as the image sees it" if place == "container" else ""
            bucket = " or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX" if what == "--run-dir" else ""
            raise BadInput(f"{what} {shown(path)!r} {wrong}; give an absolute path{where}{bucket}.")
    return Job(dns_name("--name", name, most=36), Expression.parse(at), run_file, run_dir)
