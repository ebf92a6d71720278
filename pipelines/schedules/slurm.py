"""A Slurm batch script: a Ray cluster on its nodes by `ray symmetric-run`, requeued when it is preempted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from pipelines.schedules import Job
from pipelines.schedules._words import fill, gib

__all__ = ["PLACE", "SUFFIX", "Config", "command", "render"]

SUFFIX = ".sbatch"
PLACE: Literal["machine"] = "machine"


@dataclass(frozen=True)
class Config:
    """`workers` nodes, each with `cpus`, `gpus` and `memory`; the first of them holds the head as well."""

    workers: int = 1
    cpus: int = 8
    gpus: int = 0
    memory: str = "32G"


_TEMPLATE = """\
#!/bin/bash
# quintain, {{ name }}: the loop of hard-negative mining on Slurm. Rendered by `pipelines schedule slurm`.
#
# Once      sbatch {{ name }}.sbatch
# By clock  scrontab -e, and these lines (where scrontab is off, cron on a login node can do the last):
#             #SCRON --time=00:05:00
#             #SCRON --job-name={{ name }}-submit
#             {{ at }} sbatch "$HOME/{{ name }}.sbatch"
# Change    partition, account, time, and how `pipelines` comes into PATH. Paths must be the same on all nodes.
# Secrets   $HOME/.config/quintain/env, mode 600, never this text. Once:
#             mkdir -p ~/.config/quintain
#             (umask 077; echo "RAY_AUTH_TOKEN=$(openssl rand -hex 32)" >> ~/.config/quintain/env)
#           Credentials of an object store (AWS_ACCESS_KEY_ID=...) go there too.
# Again     The command resumes after any kill. Preempted, out of time or ended with 75 (try again), the job queues
#           itself once more; 2 wrong usage, 3 bad input, 4 damaged artifact and 5 another writer stay failed.
#
#SBATCH --job-name={{ name }}
#SBATCH --nodes={{ workers }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ cpus }}
#SBATCH --mem={{ memory }}G
{% if gpus %}
#SBATCH --gpus-per-node={{ gpus }}
{% endif %}
#SBATCH --time=12:00:00
##SBATCH --partition=CHANGE-ME
##SBATCH --account=CHANGE-ME
# One at a time: another job of this name and user waits until this one has ended.
#SBATCH --dependency=singleton
# Ray allows one cluster per node and user, and symmetric-run ends all of that user's Ray processes on the node.
#SBATCH --exclusive
# The batch shell is told two minutes before the time is up.
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output={{ name }}-%j.log

set -euo pipefail
# source /opt/quintain/bin/activate

set -a
. "$HOME/.config/quintain/env"
set +a
: "${RAY_AUTH_TOKEN:?write RAY_AUTH_TOKEN=... into ~/.config/quintain/env}"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
address="${nodes%%$'\\n'*}:$((20000 + SLURM_JOB_ID % 10000))"

interrupted=
srun_pid=
interrupt() {
    interrupted=$1
    if [[ -n $srun_pid ]]; then kill -TERM "$srun_pid" 2>/dev/null || true; fi
}
trap 'interrupt USR1' USR1
trap 'interrupt TERM' TERM

# symmetric-run ends with 0 or 1 where Ray does not start: this file says that the run began, and that it ended well.
run=$(mktemp)
trap 'rm -f "$run"' EXIT

# The dashboard listens on the first node's loopback alone (reach it by ssh -L).
srun --kill-on-bad-exit=0 ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \\
    --num-cpus={{ cpus }} --num-gpus={{ gpus }} --dashboard-host=127.0.0.1 --disable-usage-stats \\
    -- sh -c 'echo began > "$0"; "$@" && echo well > "$0"' "$run" \\
    {{ command }} "$address" &
srun_pid=$!

code=0
wait "$srun_pid" || code=$?
# A signal ends `wait`, not srun: wait for that too.
while kill -0 "$srun_pid" 2>/dev/null; do
    code=0
    wait "$srun_pid" || code=$?
done
if [[ ! -s $run ]] || [[ $code == 0 && $(cat "$run") != well ]]; then
    echo "{{ name }}: the run did not begin, or its end is not known (exit code $code); see above"
    code=75
fi

if [[ $interrupted == TERM ]]; then
    echo "{{ name }}: told to end; Slurm queues it again if it was preempted"
    exit 75
fi
if [[ $interrupted == USR1 || $code == 75 ]] && (( ${SLURM_RESTART_COUNT:-0} < 20 )); then
    echo "{{ name }}: not done (${interrupted:-exit code 75}); queued again to go on"
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
fi
exit "$code"
"""


def command(job: Job, config: Config) -> list[str]:
    return job.run(address="$address")


def render(job: Job, config: Config) -> str:
    """Raises BadInput for a wrong size."""
    run = shlex.join(command(job, config)[:-1])
    return fill(
        _TEMPLATE,
        name=job.name,
        at=str(job.at),
        command=run,
        workers=config.workers,
        cpus=config.cpus,
        gpus=config.gpus,
        memory=gib(config.memory),
    )
