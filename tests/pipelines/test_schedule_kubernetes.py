"""Kubernetes: every document against its real schema; what refers to what; what the shells make of the entrypoint."""

from __future__ import annotations

import copy
import functools
import gzip
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.schedules import _create
from tests.pipelines.schedule_stubs import HOSTILE, parsed, rendered

RUN = ("/data/run.toml", "/data/runs/nightly")
CRDS = Path(__file__).parents[3] / "shared" / "data" / "crds"
# The oldest Kubernetes that knows everything asked for (podFailurePolicy, timeZone), and the newest.
VERSIONS = ("1.31", kubernetes_validate.latest_version())


def documents(kind: str, *options: str, run: tuple[str, str] = RUN) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all(rendered(kind, *run, *options)))
    by_kind = {document["kind"]: document for document in found}
    assert len(by_kind) == len(found)
    return by_kind


def rayjob(*options: str, run: tuple[str, str] = RUN) -> dict[str, Any]:
    """The RayJob as the CronJob's pod makes it."""
    found: dict[str, Any] = yaml.safe_load(
        documents("kubernetes", *options, run=run)["ConfigMap"]["data"]["rayjob.yaml"]
    )
    found["metadata"] |= {"name": "quintain-29400000", "namespace": "quintain"}
    return found


@functools.cache
def schema_of(name: str) -> jsonschema.Draft202012Validator:
    """The schema of a KubeRay resource; what it does not know is an error, as under strict field validation."""
    path = CRDS / f"ray.io_{name}.yaml.gz"
    if not path.is_file():
        pytest.skip(f"no KubeRay schemas: {path.name} is not in shared/data/crds beside the checkout")
    # libyaml where PyYAML has it: the files are large.
    resource = yaml.load(gzip.decompress(path.read_bytes()), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in resource["spec"]["versions"] if version["name"] == "v1"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["kubernetes", "raycronjob"])
@pytest.mark.parametrize("options", [[], ["--gpus", "2", "--workers", "7", "--memory", "200Gi", "--cpus", "16"]])
def test_documents_are_what_kubernetes_takes(kind: str, options: list[str], version: str) -> None:
    own = {
        name: each for name, each in documents(kind, *options).items() if not each["apiVersion"].startswith("ray.io/")
    }
    assert set(own) == (
        {"ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ConfigMap", "CronJob"}
        if kind == "kubernetes"
        else {"NetworkPolicy"}
    )
    for document in own.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_would_find_a_fault() -> None:
    cron = documents("kubernetes")["CronJob"]
    for path, value in (("concurrencyPolicies", "Forbid"), ("startingDeadlineSeconds", "soon")):
        wrong = copy.deepcopy(cron)
        wrong["spec"][path] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("options", [[], ["--gpus", "2", "--workers", "7", "--memory", "200Gi"]])
def test_the_rayjob_is_what_kuberay_takes(options: list[str]) -> None:
    schema_of("rayjobs").validate(rayjob(*options))


def test_the_raycronjob_is_what_kuberay_takes() -> None:
    schema_of("raycronjobs").validate(documents("raycronjob", "--gpus", "1")["RayCronJob"])


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "entrypoints", "pipelines"),
        ((), "ttlSecondsAfterFinished", "soon"),
        (("rayClusterSpec", "authOptions"), "mode", "password"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec"), "containres", []),
        (("rayClusterSpec", "workerGroupSpecs", 0), "replicas", "two"),
    ],
)
def test_kuberays_schema_would_find_a_fault(place: tuple[Any, ...], key: str, value: Any) -> None:
    wrong = rayjob()
    at = wrong["spec"]
    for step in place:
        at = at[step]
    at[key] = value
    with pytest.raises(jsonschema.ValidationError):
        schema_of("rayjobs").validate(wrong)


def test_the_pods_of_a_rayjob_are_pods_to_kubernetes() -> None:
    """KubeRay's schema knows the parts of a pod; here the whole is asked of Kubernetes' own."""
    cluster = rayjob("--gpus", "1")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {**copy.deepcopy(group["template"]), "apiVersion": "v1", "kind": "Pod"}
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_the_cronjob_runs_one_at_a_time() -> None:
    own = documents("kubernetes", "--name", "nightly", "--namespace", "team")
    spec = own["CronJob"]["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"], spec["schedule"]) == ("Forbid", "Etc/UTC", "0 2 * * *")
    assert spec["startingDeadlineSeconds"] > 10
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    # Who it is, may make RayJobs and nothing else, and every name that refers to another is that of one.
    role, binding = own["Role"], own["RoleBinding"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == own["ServiceAccount"]["metadata"]["name"] == pod["serviceAccountName"]
    assert pod["volumes"][0]["configMap"]["name"] == own["ConfigMap"]["metadata"]["name"]
    assert {document["metadata"]["namespace"] for document in own.values()} == {"team"}
    # It starts the module of ours that is there, with the file that the ConfigMap gives it.
    (start,) = pod["containers"]
    assert start["command"][:3] == ["python", "-m", _create.__name__]
    assert start["command"][3] == f"{start['volumeMounts'][0]['mountPath']}/{next(iter(own['ConfigMap']['data']))}"
    assert {each["name"] for each in start["env"]} == {"JOB_NAME", "JOB_UID", "NAMESPACE"}


@pytest.mark.parametrize("kind", ["kubernetes", "raycronjob"])
def test_the_cluster_that_a_job_gets(kind: str) -> None:
    options = ("--workers", "3", "--gpus", "2", "--memory", "20G", "--volume", "claim:/data")
    found = rayjob(*options)["spec"]
    if kind == "raycronjob":
        assert documents(kind, *options)["RayCronJob"]["spec"]["jobTemplate"] == found
    assert found["shutdownAfterJobFinishes"] is True
    assert 0 < found["ttlSecondsAfterFinished"] <= 3600  # the cluster is paid for so long
    assert {"backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds"} <= set(found)
    cluster = found["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "quintain-ray"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 3
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    token = {"name": "quintain-ray", "key": "auth_token"}
    for group, gpus in ((cluster["headGroupSpec"], None), (workers, "2")):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == gpus
        environment = {each["name"]: each for each in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == token
        assert environment["RAY_USAGE_STATS_ENABLED"]["value"] == "0"
        volumes = {each["name"]: each for each in pod["volumes"]}
        shm = volumes["shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        size, memory = (int(each.removesuffix("Gi")) for each in (shm["sizeLimit"], limits["memory"]))
        assert int(group["rayStartParams"]["object-store-memory"]) < size * 2**30 < memory * 2**30
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "claim"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["kubernetes", "raycronjob"])
def test_the_entrypoint_runs_what_was_said(kind: str, name: str) -> None:
    run = (f"/data/{name}.toml", f"/data/{name}")
    found = documents(kind, run=run)
    spec = rayjob(run=run)["spec"] if kind == "kubernetes" else found["RayCronJob"]["spec"]["jobTemplate"]
    # By the shell of KubeRay's submitter and, joined by `ray job submit`, by that of Ray; or by Ray's alone.
    words = shell_reads(spec["entrypoint"])
    assert shell_reads(shlex.join(words)) == words
    read = parsed(words)
    assert (str(read["run_file"]), str(read["run_dir"]), read["address"]) == (*run, "auto")


def shell_reads(command: str) -> list[str]:
    said = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    return said.decode().split("\0")[:-1]


def test_final_codes_of_the_pod_are_not_tried_again() -> None:
    spec = documents("kubernetes")["CronJob"]["spec"]["jobTemplate"]["spec"]
    rule = next(rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert rule["onExitCodes"]["values"] == [1, 3]
    assert rule["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
