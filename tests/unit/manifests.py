"""Files under cluster/ as data, and the schemas that its Kubernetes objects are checked against.

Kubernetes objects and every pod template have the types of the official Kubernetes client. The schemas of KubeRay and
of the Prometheus operator come with their operators only, and no package index carries them. `RAY_CLUSTER`, `RAY_JOB`
and `KINDS` are therefore a list of our own: fields that manifests use or may use, their types, the values of a choice,
and what is required, compared field by field with KubeRay's published API reference: that of 1.4 for all of them, that
of 1.6 for what came since (`authOptions`, `RayCronJob`). It is no substitute for an operator that takes the objects.
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

RAY_CLUSTER = {
    "authOptions": {"mode": frozenset({"token", "disabled"}), "secretName": str, "enableK8sTokenAuth": bool},
    "autoscalerOptions": {
        "env": ["V1EnvVar"],
        "idleTimeoutSeconds": int,
        "image": str,
        "resources": "V1ResourceRequirements",
        "securityContext": "V1SecurityContext",
        "upscalingMode": frozenset({"Default", "Aggressive", "Conservative"}),
    },
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": {
        "enableIngress": bool,
        "headService": "V1Service",
        "rayStartParams": {str: str},
        "serviceType": str,
        "template": "V1PodTemplateSpec",
    },
    "rayVersion": str,
    "suspend": bool,
    "workerGroupSpecs": [
        {
            "groupName": str,
            "maxReplicas": int,
            "minReplicas": int,
            "numOfHosts": int,
            "rayStartParams": {str: str},
            "replicas": int,
            "template": "V1PodTemplateSpec",
        }
    ],
}
RAY_JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "clusterSelector": {str: str},
    "entrypoint": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "jobId": str,
    "metadata": {str: str},
    "rayClusterSpec": RAY_CLUSTER,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": frozenset({"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}),
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
    "RayCluster": {"spec": RAY_CLUSTER},
    "RayJob": {"spec": RAY_JOB},
    "RayCronJob": {"spec": {"schedule": str, "jobTemplate": RAY_JOB, "suspend": bool}},
    "RayService": {
        "spec": {
            "serveConfigV2": str,
            "rayClusterConfig": RAY_CLUSTER,
            "serveService": "V1Service",
            "upgradeStrategy": {"type": frozenset({"NewCluster", "None"})},
        }
    },
    "PodMonitor": {
        "spec": {"selector": "V1LabelSelector", "podMetricsEndpoints": [{"port": str, "interval": str, "path": str}]}
    },
}
REQUIRED = {
    "headGroupSpec": ("rayStartParams", "template"),
    "workerGroupSpecs": ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    "RayCluster": ("rayVersion", "headGroupSpec"),
    "RayJob": ("entrypoint",),
    "RayCronJob": ("schedule", "jobTemplate"),
    "RayService": ("serveConfigV2", "rayClusterConfig"),
    "PodMonitor": ("selector", "podMetricsEndpoints"),
}


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
        for key, item in value.items():
            assert str in schema or key in schema, f"{where}.{key}: no such field; there are {sorted(map(str, schema))}"
            check(item, schema.get(key, schema.get(str)), f"{where}.{key}")
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
    check(item["spec"], schema["spec"], f"{where}.spec")
    groups = [("headGroupSpec", g) for g in find(item, "headGroupSpec")]
    groups += [("workerGroupSpecs", g) for found in find(item, "workerGroupSpecs") for g in found]
    for name, value in [(kind, item["spec"]), *groups]:
        for field in REQUIRED[name]:
            assert field in value, f"{where}: {name}.{field} is missing"
    for _, group in groups[1:]:
        if "maxReplicas" in group:
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
