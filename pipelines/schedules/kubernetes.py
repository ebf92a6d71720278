"""A Kubernetes CronJob, one at a time, whose pod makes a RayJob and waits for it."""

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
    """`workers` pods, each with `cpus`, `gpus` and `memory`, beside a head that does no work of stages."""


_TEMPLATE = (
    """\
# quintain, {{ name }}: the loop of hard-negative mining on Kubernetes with the KubeRay operator (1.6 or later).
# Rendered by `pipelines schedule kubernetes`.
#
"""
    + HEADER
    + """\
# By hand   kubectl -n {{ namespace }} create job --from=cronjob/{{ name }} {{ name }}-by-hand
# Watch     kubectl -n {{ namespace }} get cronjob,job,rayjob,pod -l app.kubernetes.io/instance={{ name }}
---
# Who makes RayJobs, and may do nothing else.
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
rules:
  - apiGroups: [ray.io]
    resources: [rayjobs]
    verbs: [create, get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ name | y }}
subjects:
  - kind: ServiceAccount
    name: {{ name | y }}
    namespace: {{ namespace | y }}
---
"""
    + NETWORK
    + """\
---
# The RayJob that every run makes. Its name is that of the CronJob's Job, which holds the scheduled time: whoever comes
# second to it finds it made, and waits for it too.
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
data:
  rayjob.yaml: |
    apiVersion: ray.io/v1
    kind: RayJob
    metadata:
      labels:
        app.kubernetes.io/name: quintain
        app.kubernetes.io/instance: {{ name | y }}
    spec:
      {{ rayjob | indent(6) }}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
  labels:
    app.kubernetes.io/name: quintain
    app.kubernetes.io/instance: {{ name | y }}
spec:
  schedule: {{ at | y }}
  timeZone: Etc/UTC
  # While a run goes on (its pod below waits for the RayJob), the next one is left out.
  concurrencyPolicy: Forbid
  # Missed by more than an hour, a run is left out.
  startingDeadlineSeconds: 3600
  suspend: false
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    metadata:
      labels:
        app.kubernetes.io/name: quintain
        app.kubernetes.io/instance: {{ name | y }}
    spec:
      # Of the waiting pod alone: a new one finds the RayJob and goes on waiting. A RayJob that failed is final (1), and
      # so is one that the API refuses (3).
      backoffLimit: 6
      podFailurePolicy:
        rules:
          - action: FailJob
            onExitCodes: {containerName: start, operator: In, values: [1, 3]}
          - action: Ignore
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
      template:
        metadata:
          labels:
            app.kubernetes.io/name: quintain
            app.kubernetes.io/component: start
        spec:
          restartPolicy: Never
          serviceAccountName: {{ name | y }}
          automountServiceAccountToken: true
          securityContext:
            runAsNonRoot: true
            runAsUser: 1000
            seccompProfile: {type: RuntimeDefault}
          containers:
            - name: start
              image: {{ image | y }}
              command: [python, -m, pipelines.schedules._create, /etc/quintain/rayjob.yaml]
              env:
                - name: JOB_NAME
                  valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
                - name: JOB_UID
                  valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/controller-uid']"}}
                - name: NAMESPACE
                  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
              resources:
                requests: {cpu: 50m, memory: 64Mi}
                limits: {memory: 256Mi}
              securityContext:
                allowPrivilegeEscalation: false
                readOnlyRootFilesystem: true
                capabilities: {drop: [ALL]}
              volumeMounts:
                - {name: rayjob, mountPath: /etc/quintain, readOnly: true}
          volumes:
            - name: rayjob
              configMap: {name: {{ name | y }}}
"""
)


def render(job: Job, config: Config) -> str:
    """Raises BadInput for a wrong name, size or place."""
    about = values(job, config)
    return fill(_TEMPLATE, **about, rayjob=spec(about))
