"""A crontab line for one machine, guarded by flock."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miner.artifacts.errors import BadInput
from pipelines.schedules import Job
from pipelines.schedules._words import bash_line, fill

__all__ = ["PLACE", "SUFFIX", "Config", "command", "render"]

SUFFIX = ".crontab"
PLACE: Literal["machine"] = "machine"
_LONGEST = 998  # Debian's cron reads no more of a command


@dataclass(frozen=True)
class Config:
    """`address` of a Ray cluster to join; without, a local one of `workers` (0: one per core) for each run."""

    address: str = ""
    workers: int = 0


_TEMPLATE = """\
# quintain, {{ name }}: the loop of hard-negative mining, started by cron. Rendered by `pipelines schedule cron`.
#
# Install   crontab -l 2>/dev/null | cat - {{ name }}.crontab | crontab -     (`crontab -l` shows, `crontab -e` edits)
# Change    PATH: where `pipelines` and flock are; MAILTO: who hears of a failure. Times are the machine's own.
# Secrets   $HOME/.config/quintain/env, mode 600, never this text. Once:
#             mkdir -p ~/.config/quintain
#             (umask 077; echo "RAY_AUTH_TOKEN=$(openssl rand -hex 32)" >> ~/.config/quintain/env)
#           {{ "The token is that of the cluster at --address; copy it from there." if address else
              "The local cluster takes this token; its dashboard is off." }}
#           Credentials of an object store (AWS_ACCESS_KEY_ID=...) go there too.
# Again     The command resumes: what is done is not done again, and when all is done it does nothing. So the line may
#           be as frequent as you like; flock lets only one run at a time, and others end at once with 75.
# Codes     0 done; 2 wrong usage, 3 bad input, 4 damaged artifact: look at the log, for trying again does not help;
#           5 another command holds the run folder; 75 try again: the next time this line comes goes on.
#
SHELL=/bin/bash
PATH={{ path }}
# MAILTO=you@example.org
RAY_AUTH_MODE=token
RAY_USAGE_STATS_ENABLED=0
{{ at }} {{ line }}
"""


def command(job: Job, config: Config) -> list[str]:
    return job.run(address=config.address, workers=config.workers)


def render(job: Job, config: Config) -> str:
    """Raises BadInput for a command that is longer than cron reads."""
    home = '"$HOME/.config/quintain'
    guarded = (
        f'set -a && . {home}/env" && set +a && '
        f'flock --nonblock --conflict-exit-code 75 {home}/{job.name}.lock" {bash_line(command(job, config))} '
        f'>> {home}/{job.name}.log" 2>&1 || '
        f'echo "quintain {job.name}: exit code $?, see ~/.config/quintain/{job.name}.log"'
    )
    if len(guarded.encode()) > _LONGEST:
        raise BadInput(
            f"the line would be {len(guarded.encode())} bytes long, and cron reads {_LONGEST}: use shorter paths."
        )
    # Where this command is, if cron can be told so in plain words.
    here = str(Path(sys.executable).parent)
    here = here if re.fullmatch(r"[\w./+-]+", here, re.ASCII) else "/opt/quintain/bin"
    path = f"{here}:/usr/local/bin:/usr/bin:/bin"
    return fill(_TEMPLATE, name=job.name, at=str(job.at), path=path, line=guarded, address=config.address)
