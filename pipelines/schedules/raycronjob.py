"""KubeRay's own RayCronJob: shorter, but alpha, and it starts a run beside one that still goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.schedules import Job
from pipelines.schedules._rayjob import HEADER, NETWORK, ClusterConfig, command, spec, values
from pipelines.schedules._words import fill

__all__ = ["PLACE", "SUFFIX", "Config", "command", "render"]

SUFFIX = ".yaml"
PLACE: Literal["container"] = "container"


@dataclass(frozen=True)
class Config(ClusterConfig):
    """As for kubernetes."""


_TEMPLATE = (
    """\
# quintain, {{ name }}: the loop of hard-negative mining on KubeRay. Rendered by `pipelines schedule raycronjob`.
#
# RayCronJob is alpha (KubeRay 1.6 and later, its feature gate must be on) and has no concurrencyPolicy: a run that
# takes longer than the time between two gets another beside it, which ends with 5 where the volume has locks.
# `pipelines schedule kubernetes` renders a CronJob with Forbid: prefer that one.
#
"""
    + HEADER
    + """\
---
"""
    + NETWORK
    + """\
---
apiVersion: ray.io/v1
kind: RayCronJob
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
spec:
  schedule: {{ at | y }}
  timeZone: Etc/UTC
  suspend: false
  jobTemplate:
    {{ rayjob | indent(4) }}
"""
)


def render(job: Job, config: Config) -> str:
    """Raises BadInput for a wrong name, size or place."""
    about = values(job, config)
    return fill(_TEMPLATE, **about, rayjob=spec(about))
