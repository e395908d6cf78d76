"""Files under cluster/ as data, and the schemas that its Kubernetes objects are checked against.

Kubernetes objects and every pod template have the types of the official Kubernetes client. The schemas of KubeRay and
of the Prometheus operator come with their operators only, and no package index carries them. `RAY_CLUSTER`, `RAY_JOB`
and `KINDS` are therefore a list of our own of KubeRay's fields outside of pod templates, services and status: types,
the values of a choice, and what is required (names with `!`). It was compared field by field with

- its CRDs in ray-project/kuberay: `ray-operator/config/crd/bases/ray.io_raycronjobs.yaml` of commit 12cb11e, which
  holds the specs of RayCluster and RayJob as well and is a little older than release 1.6.0, and what
  `helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml` of commit 02a80a6, which is newer than 1.6.2, says of
  services and their upgrades;
- the API reference of release 1.6.2 (`docs/reference/api.md` of commit 0a9eabd), for every field: what neither CRD has
  (`authOptions.secretName` and `.enableK8sTokenAuth`, `preRunningDeadlineSeconds`) is in there, and what 1.6.2 does not
  have (`suspend` of a service) is left out.

Where a CRD takes any string of which the operator knows some (`submissionMode`, `managedBy`, `upgradeStrategy.type` of
a service), the list has those. The PodMonitor was not compared with its CRD. It is no substitute for an operator that
takes the objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted(p for p in (CLUSTER / "kubernetes").rglob("*.yaml") if p.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted((CLUSTER / "kubernetes").rglob("kustomization.yaml"))
LAUNCHERS = sorted((CLUSTER / "launcher").glob("*.yaml"))
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
HOME_IN_IMAGE = "/home/ray/memr1"

MANAGERS = frozenset({"ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"})
CREDENTIAL = {"value": str, "valueFrom": "V1EnvVarSource"}
DELETION = frozenset({"DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"})
RAY_CLUSTER = {
    "authOptions": {"mode": frozenset({"token", "disabled"}), "secretName": str, "enableK8sTokenAuth": bool},
    "autoscalerOptions": {
        "env": ["V1EnvVar"],
        "envFrom": ["V1EnvFromSource"],
        "idleTimeoutSeconds": int,
        "image": str,
        "imagePullPolicy": str,
        "resources": "V1ResourceRequirements",
        "securityContext": "V1SecurityContext",
        "upscalingMode": frozenset({"Default", "Aggressive", "Conservative"}),
        "version": frozenset({"v1", "v2"}),
        "volumeMounts": ["V1VolumeMount"],
    },
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": {
        "externalStorageNamespace": str,
        "redisAddress!": str,
        "redisPassword": CREDENTIAL,
        "redisUsername": CREDENTIAL,
    },
    "headGroupSpec!": {
        "enableIngress": bool,
        "headService": "V1Service",
        "labels": {str: str},
        "rayStartParams": {str: str},
        "resources": {str: str},
        "serviceType": str,
        "template!": "V1PodTemplateSpec",
    },
    "headServiceAnnotations": {str: str},
    "managedBy": MANAGERS,
    "rayVersion": str,
    "suspend": bool,
    "upgradeStrategy": {"type": frozenset({"Recreate", "None"})},
    "workerGroupSpecs": [
        {
            "groupName!": str,
            "idleTimeoutSeconds": int,
            "labels": {str: str},
            "maxReplicas!": int,
            "minReplicas!": int,
            "numOfHosts": int,
            "rayStartParams": {str: str},
            "replicas": int,
            "resources": {str: str},
            "scaleStrategy": {"workersToDelete": [str]},
            "suspend": bool,
            "template!": "V1PodTemplateSpec",
        }
    ],
}
RAY_JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "clusterSelector": {str: str},
    "deletionStrategy": {
        "deletionRules": [
            {
                "condition!": {
                    "jobDeploymentStatus": frozenset({"Failed"}),
                    "jobStatus": frozenset({"SUCCEEDED", "FAILED"}),
                    "ttlSeconds": int,
                },
                "policy!": DELETION,
            }
        ],
        "onFailure": {"policy": DELETION},
        "onSuccess": {"policy": DELETION},
    },
    "entrypoint": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "entrypointResources": str,
    "jobId": str,
    "managedBy": MANAGERS,
    "metadata": {str: str},
    "preRunningDeadlineSeconds": int,
    "rayClusterSpec": RAY_CLUSTER,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": frozenset({"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}),
    "submitterConfig": {"backoffLimit": int},
    "submitterPodTemplate": "V1PodTemplateSpec",
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
KINDS: dict[str, Any] = {
    "Namespace": "V1Namespace",
    "NetworkPolicy": "V1NetworkPolicy",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "Service": "V1Service",
    "StatefulSet": "V1StatefulSet",
    "RayCluster": RAY_CLUSTER,
    "RayJob": RAY_JOB,
    "RayCronJob": {"schedule!": str, "jobTemplate!": RAY_JOB, "suspend": bool},
    "RayService": {
        "deploymentUnhealthySecondThreshold": int,
        "excludeHeadPodFromServeSvc": bool,
        "managedBy": MANAGERS,
        "rayClusterConfig!": RAY_CLUSTER,
        "rayClusterDeletionDelaySeconds": int,
        "serveConfigV2": str,
        "serveService": "V1Service",
        "serviceUnhealthySecondThreshold": int,
        "upgradeStrategy": {
            "clusterUpgradeOptions": {
                "gatewayClassName!": str,
                "intervalSeconds!": int,
                "maxSurgePercent": int,
                "stepSizePercent!": int,
            },
            "type": frozenset({"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}),
        },
    },
    "PodMonitor": {
        "selector!": "V1LabelSelector",
        "podMetricsEndpoints!": [{"port": str, "interval": str, "path": str}],
    },
}
"""By kind: the type of the whole object, or the fields of its spec."""
OURS = {
    "RayCluster": ("rayVersion",),  # the operator wants it for `authOptions.mode: token`
    "RayJob": ("entrypoint",),
    "RayService": ("serveConfigV2",),
}
"""Fields of a spec that no CRD requires, and without which our files would be of no use."""


def check(value: Any, schema: Any, where: str) -> None:
    """Raise AssertionError naming the place when a value does not fit."""
    if isinstance(schema, str):
        check_model(value, schema, where)
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{where}: expected a list"
        for i, item in enumerate(value):
            check(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), f"{where}: expected a mapping"
        fields = {key if key is str else key.rstrip("!"): kind for key, kind in schema.items()}
        for key, item in value.items():
            assert str in fields or key in fields, f"{where}.{key}: no such field; there are {sorted(map(str, fields))}"
            check(item, fields.get(key, fields.get(str)), f"{where}.{key}")
        for key in schema.keys() - fields.keys():
            assert key.rstrip("!") in value, f"{where}.{key.rstrip('!')} is missing"
    elif isinstance(schema, frozenset):
        assert value in schema, f"{where}: {value!r} is not one of {sorted(schema)}"
    else:
        kinds = schema if isinstance(schema, tuple) else (schema,)
        fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        assert fits, f"{where}: expected {schema}, found {value!r}"


def check_model(value: Any, name: str, where: str) -> None:
    """A value against a type of the Kubernetes client: known fields, their types, what is required."""
    import kubernetes.client.models as models

    if match := re.fullmatch(r"[Ll]ist\[(.+)\]", name):
        return check(value, [match[1]], where)
    if match := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", name):
        return check(value, {str: match[1]}, where)
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
    if name in plain:
        if name == "object":  # quantities, ports by name or number
            return
        return check(value, plain[name], where)
    model = getattr(models, name)
    assert isinstance(value, dict), f"{where}: expected a mapping for {name}"
    by_key = {key: attribute for attribute, key in model.attribute_map.items()}
    for key, item in value.items():
        assert key in by_key, f"{where}.{key}: {name} has no such field"
        check_model(item, model.openapi_types[by_key[key]], f"{where}.{key}")
    known = {by_key[key]: item for key, item in value.items()}
    model(**{a: known.get(a) for a in model.attribute_map})  # raises for what is required and not there


def check_object(item: dict[str, Any], where: str) -> None:
    kind = item["kind"]
    schema = KINDS[kind]
    if isinstance(schema, str):
        check_model(item, schema, where)
        return
    expected = "monitoring.coreos.com/v1" if kind == "PodMonitor" else "ray.io/v1"
    assert item["apiVersion"] == expected, where
    check_model(item["metadata"], "V1ObjectMeta", f"{where}.metadata")
    check(item["spec"], schema, f"{where}.spec")
    for field in OURS.get(kind, ()):
        assert field in item["spec"], f"{where}.spec.{field} is missing"
    for group in (g for found in find(item, "workerGroupSpecs") for g in found):
        replicas = group.get("replicas", 0)
        assert group["minReplicas"] <= replicas <= group["maxReplicas"], f"{where}: replicas is {replicas}"
    job = item["spec"].get("jobTemplate", item["spec"])
    if "entrypoint" in job:
        assert ("rayClusterSpec" in job) != ("clusterSelector" in job), f"{where}: a cluster of its own, or another one"
        assert job.get("shutdownAfterJobFinishes") or "ttlSecondsAfterFinished" not in job, where


def objects(path: Path) -> list[dict[str, Any]]:
    return [o for o in yaml.safe_load_all(path.read_text()) if o]


def all_objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in [*KUBERNETES, CLUSTER / "monitoring" / "podmonitor.yaml"]:
        for item in objects(path):
            yield f"{path.relative_to(ROOT)}: {item['kind']}", item


def find(value: Any, key: str) -> Iterator[Any]:
    """Values of a key, anywhere inside."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for item in value.values():
            yield from find(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from find(item, key)


def pods(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (t["spec"] for t in find(item, "template"))
