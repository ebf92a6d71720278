"""What Kubernetes' schedulers share: a RayJob with its own cluster, and who may reach it."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.schedules import Job
from pipelines.schedules._words import below, dns_name, fill, gib, image_name, mount_of

__all__ = ["HEADER", "NETWORK", "ClusterConfig", "command", "spec", "values"]


@dataclass(frozen=True)
class ClusterConfig:
    """`workers` pods, each with `cpus`, `gpus` and `memory`, beside a head that does no work of stages."""

    image: str
    namespace: str = "quintain"
    workers: int = 2
    cpus: int = 4
    gpus: int = 0
    memory: str = "16G"
    volume: str = "quintain:/data"


HEADER = """\
# Once      kubectl create namespace {{ namespace }}
#           openssl rand -hex 32 | tr -d '\\n' | kubectl -n {{ namespace }} create secret generic quintain-ray \\
#               --from-file=auth_token=/dev/stdin
#           a PersistentVolumeClaim {{ claim }} that many pods may write (ReadWriteMany): {{ mount }} in the pods holds
#           the run file, the data and the run folder
#           optional, for an object store: kubectl -n {{ namespace }} create secret generic quintain-env \\
#               --from-env-file=FILE        with AWS_ACCESS_KEY_ID=..., one per line
# Install   kubectl apply -f {{ name }}.yaml
# Change    the image (Dockerfile in the project's root builds it), resources, nodeSelector, and the times, in UTC.
# Secrets   are named here and never written: the token of the Ray cluster is in quintain-ray.
# Again     The command resumes: a retry, the next night and a run by hand all go on where the last one stopped.
# Truth     `pipelines status RUN_DIR` says what is committed; a status of Ray or Kubernetes is only a hint at it.
"""

NETWORK = """\
# Ray's ports and its dashboard answer pods of this namespace and the KubeRay operator alone. On loopback the dashboard
# cannot be here, for the operator watches the job through it; every request carries the token all the same.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ name | y }}
  namespace: {{ namespace | y }}
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/instance: {{ name | y }}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector: {}
        - namespaceSelector: {}
          podSelector:
            matchLabels:
              app.kubernetes.io/name: kuberay-operator
"""

_POD = """\
metadata:
  labels:
    app.kubernetes.io/name: quintain
    app.kubernetes.io/instance: {{ name | y }}
spec:
  automountServiceAccountToken: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    fsGroup: 1000
    seccompProfile: {type: RuntimeDefault}
{% if gpus %}
  tolerations:
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
{% endif %}
  containers:
    - name: ray
      image: {{ image | y }}
      env:
        - {name: RAY_AUTH_MODE, value: token}
        - name: RAY_AUTH_TOKEN
          valueFrom: {secretKeyRef: {name: quintain-ray, key: auth_token}}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
      envFrom:
        - secretRef: {name: quintain-env, optional: true}
      resources:
        requests: {cpu: "{{ cpus }}", memory: {{ memory }}Gi}
        limits: {cpu: "{{ cpus }}", memory: {{ memory }}Gi{{ ', nvidia.com/gpu: "%d"' % gpus if gpus else "" }}}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: data, mountPath: {{ mount | y }}}
        - {name: shm, mountPath: /dev/shm}
  volumes:
    - name: data
      persistentVolumeClaim: {claimName: {{ claim | y }}}
    # Ray's object store and the processes that decode pictures live here; it counts as the container's memory.
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ shm }}Gi}
"""

_SPEC = """\
entrypoint: {{ entrypoint | y }}
# The cluster goes five minutes after the job, and so do its machines and GPUs; the RayJob stays, for its status.
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: 300
# A cluster that does not come up in half an hour, or a run of more than a day, is given up; the next one resumes.
preRunningDeadlineSeconds: 1800
activeDeadlineSeconds: 86400
# Each further try has a new cluster and goes on where the last one stopped.
backoffLimit: 2
rayClusterSpec:
  # That of the image.
  rayVersion: {{ ray | y }}
  authOptions: {mode: token, secretName: quintain-ray}
  headGroupSpec:
    rayStartParams:
      # The head drives and does no work of stages: what a stage may eat must not take the cluster with it.
      num-cpus: "0"
      object-store-memory: "{{ 2**29 }}"
    template:
      {{ head | indent(6) }}
  workerGroupSpecs:
    # A fixed number: the loop counts the workers and their GPUs once, when it joins. More of them change no byte.
    - groupName: workers
      replicas: {{ workers }}
      minReplicas: {{ workers }}
      maxReplicas: {{ workers }}
      rayStartParams:
        # Half of /dev/shm; tasks hand each other names of files, hardly any objects.
        object-store-memory: "{{ shm * 2**29 }}"
      template:
        {{ worker | indent(8) }}
"""


def command(job: Job, config: Any) -> list[str]:
    return job.run(address="auto")


def values(job: Job, config: ClusterConfig) -> dict[str, Any]:
    """What the templates want, checked. Raises BadInput."""
    claim, mount = mount_of(config.volume)
    below(mount, "RUN_FILE", job.run_file)
    below(mount, "--run-dir", job.run_dir)
    memory = gib(config.memory)
    return {
        "name": job.name,
        "at": str(job.at),
        "namespace": dns_name("--namespace", config.namespace),
        "image": image_name(config.image),
        "claim": claim,
        "mount": mount,
        "workers": config.workers,
        "cpus": config.cpus,
        "gpus": config.gpus,
        "memory": memory,
        "shm": max(1, memory * 3 // 10),
        "ray": _ray_version(),
        "entrypoint": shlex.join(command(job, config)),
    }


def spec(about: Mapping[str, Any]) -> str:
    """The `spec` of a RayJob as YAML."""
    head = fill(_POD, **{**about, "cpus": 2, "gpus": 0, "memory": 8, "shm": 1}).strip()
    worker = fill(_POD, **about).strip()
    return fill(_SPEC, **about, head=head, worker=worker).strip()


def _ray_version() -> str:
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return "2.60.0"
