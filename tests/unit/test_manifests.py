"""Everything under cluster/ and rayjobs/ that a machine reads: parsed, checked against schemas, and its paths resolved.

Schemas: Ray's own for launcher files and runtime environments; the types of the official Kubernetes client for
Kubernetes objects and every pod template. KubeRay ships its schemas with its operator only, so the fields of its
objects are checked against the list below, made from its API reference (version 1.6); the same holds for the
Prometheus operator's PodMonitor.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from memr1.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted(p for p in (CLUSTER / "kubernetes").rglob("*.yaml") if p.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted((CLUSTER / "kubernetes").rglob("kustomization.yaml"))
LAUNCHERS = sorted((CLUSTER / "launcher").glob("*.yaml"))
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
HOME_IN_IMAGE = "/home/ray/memr1"

RAY_CLUSTER = {
    "authOptions": {"mode": str, "secretName": str, "enableK8sTokenAuth": bool},
    "autoscalerOptions": {
        "env": ["V1EnvVar"],
        "idleTimeoutSeconds": int,
        "image": str,
        "resources": "V1ResourceRequirements",
        "securityContext": "V1SecurityContext",
        "upscalingMode": str,
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
    "submissionMode": str,
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
    "RayCronJob": {"spec": {"schedule": str, "jobTemplate": RAY_JOB}},
    "RayService": {
        "spec": {
            "serveConfigV2": str,
            "rayClusterConfig": RAY_CLUSTER,
            "serveService": "V1Service",
            "upgradeStrategy": {"type": str},
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
        return check_model(item, schema, where)
    expected = "monitoring.coreos.com/v1" if kind == "PodMonitor" else "ray.io/v1"
    assert item["apiVersion"] == expected, where
    check_model(item["metadata"], "V1ObjectMeta", f"{where}.metadata")
    check(item["spec"], schema["spec"], f"{where}.spec")
    groups = [("headGroupSpec", g) for g in find(item, "headGroupSpec")]
    groups += [("workerGroupSpecs", g) for found in find(item, "workerGroupSpecs") for g in found]
    for name, value in [(kind, item["spec"]), *groups]:
        for field in REQUIRED[name]:
            assert field in value, f"{where}: {name}.{field} is missing"
    for mode in find(item, "submissionMode"):
        assert mode in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), where
    return None


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


def test_every_kubernetes_object_fits_its_schema():
    seen = [check_object(item, where) or item["kind"] for where, item in all_objects()]
    assert {"RayCluster", "RayJob", "RayCronJob", "StatefulSet", "NetworkPolicy", "PersistentVolumeClaim"} <= set(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["spec"].update(rayVersoin="1"), "rayVersoin: no such field"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].update(replicas="2"), "replicas: expected"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].pop("maxReplicas"), "workerGroupSpecs.maxReplicas is missing"),
        (lambda c: c["spec"]["headGroupSpec"]["template"]["spec"].update(container=[]), "V1PodSpec has no such field"),
        (
            lambda c: c["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["securityContext"].update(
                runAsNonRoot="yes"
            ),
            "runAsNonRoot: expected",
        ),
    ],
)
def test_the_schemas_find_mistakes(change, message):
    cluster = objects(CLUSTER / "kubernetes" / "base" / "raycluster.yaml")[0]
    check_object(cluster, "before")
    change(cluster)
    with pytest.raises(AssertionError, match=message):
        check_object(cluster, "after")


def test_every_pod_is_restricted_has_resources_and_no_needless_token():
    count = 0
    for where, item in all_objects():
        for spec in pods(item):
            count += 1
            context = spec["securityContext"]
            assert context["runAsNonRoot"] is True and context["runAsUser"] >= 1000, where
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
            assert "automountServiceAccountToken" in spec, where
            for container in spec["containers"]:
                limits = container["securityContext"]
                assert limits == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, where
                for amount in ("requests", "limits"):
                    assert {"cpu", "memory"} <= set(container["resources"][amount]), where
    assert count >= 5


def test_images_carry_the_pinned_version_of_ray_and_clusters_ask_for_it():
    for path in sorted(CLUSTER.rglob("*")):
        if path.is_file() and path.suffix in (".yaml", ".cpu", ".gpu", ".md", ".sbatch"):
            text = path.read_text()
            assert ":latest" not in text, path
            for tag in re.findall(r"memr1-[cg]pu:(\S+)", text) + re.findall(r"newTag: ([\d.]+)", text):
                assert tag.rstrip("}") == RAY, path
    for path in sorted((CLUSTER / "docker").glob("Dockerfile.?pu")):
        assert re.search(rf"^FROM rayproject/ray:{re.escape(RAY)}-py311-(cpu|cu\d+)$", path.read_text(), re.MULTILINE)
    for _, item in all_objects():
        assert set(find(item, "rayVersion")) <= {RAY}


def test_every_cluster_wants_a_token_and_no_file_holds_one():
    for where, item in all_objects():
        clusters = [item["spec"]] if item["kind"] == "RayCluster" else list(find(item, "rayClusterSpec"))
        for spec in [*clusters, *find(item, "rayClusterConfig")]:
            assert spec["authOptions"] == {"mode": "token", "secretName": "memr1-ray-token"}, where
        assert item["kind"] != "Secret", where
    for path in LAUNCHERS:
        data = yaml.safe_load(path.read_text())
        commands = data["head_start_ray_commands"][-1:] + data["worker_start_ray_commands"][-1:]
        assert all(c.startswith("RAY_AUTH_MODE=token ") for c in commands), path
        assert any(target.endswith(".ray/auth_token") for target in data["file_mounts"]), path
        assert "--dashboard-host=127.0.0.1" in data["head_start_ray_commands"][-1], path
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in (CLUSTER / "slurm" / "train.sbatch").read_text()


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_launcher_files_fit_rays_own_schema(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    data = prepare_config(yaml.safe_load(path.read_text()))  # as `ray up` does before it asks the cloud
    validate_config(data)
    assert data["head_node_type"] in data["available_node_types"]
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(data | {"max_wrokers": 1})


def test_entry_points_and_their_arguments_are_what_the_programs_take(monkeypatch):
    """Scripts and configurations lie in the image; overrides load; options are known to the script."""
    entries = [e for _, item in all_objects() for e in find(item, "entrypoint")]
    assert len(entries) >= 2
    monkeypatch.syspath_prepend(str(ROOT / "rayjobs"))
    for entry in entries:
        folder, _, command = entry.partition(" && ")
        assert folder == f"cd {HOME_IN_IMAGE}"
        python, script, *arguments = shlex.split(command)
        assert python == "python" and (ROOT / script).is_file()
        for option in (a for a in arguments if a.startswith("--")):
            assert f'"{option}"' in (ROOT / script).read_text(), entry
        if script == "rayjobs/train.py":
            config, *overrides = [a for a in arguments if "=" in a or a.endswith(".yaml")]
            assert load_config(ROOT / config, overrides).output.startswith("/shared")
    hooks = [h["exec"]["command"] for _, item in all_objects() for h in find(item, "preStop")]
    assert len(hooks) == 2, "the heads of RayCluster and RayJob"
    assert all(hook == ["python", f"{HOME_IN_IMAGE}/rayjobs/preempt.py"] for hook in hooks)
    assert (ROOT / "rayjobs" / "preempt.py").is_file()
    sbatch = (CLUSTER / "slurm" / "train.sbatch").read_text()
    for script in re.findall(r"rayjobs/\w+\.py", sbatch):
        assert (ROOT / script).is_file()
    override = re.search(r"\"\$@\" (\S+=\S+) --resume", sbatch)
    assert override is not None
    load_config(ROOT / "configs" / "train_local.yaml", [override[1]])


def test_a_head_has_time_to_save_before_it_goes():
    for _, item in all_objects():
        for spec in pods(item):
            if any(c["name"] == "ray-head" and "lifecycle" in c for c in spec["containers"]):
                assert spec["terminationGracePeriodSeconds"] >= 150 + 20  # what preempt.py waits, and Ray's own end
    wait = re.search(r'"--wait-s", type=float, default=([\d.]+)', (ROOT / "rayjobs" / "preempt.py").read_text())
    assert wait is not None and float(wait[1]) == 150
    sbatch = (CLUSTER / "slurm" / "train.sbatch").read_text()
    assert '"$code" -eq 75 ] && scontrol requeue' in sbatch
    assert re.search(r"^STOPPED = 75$", (ROOT / "rayjobs" / "train.py").read_text(), re.MULTILINE)


def test_the_service_has_time_to_start_and_to_stop():
    """A container that is killed while it fetches weights would never start; one killed at once finishes nothing."""
    from memr1.serving.server import FLUSH_S
    from memr1.serving.settings import ServingConfig

    (pod,) = (
        item["spec"]["template"]["spec"]
        for _, item in all_objects()
        if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "memr1-bank"
    )
    # the server waits for requests and for clients to take their answers, then the service for its model
    assert pod["terminationGracePeriodSeconds"] >= 2 * ServingConfig().timeout_s + 1 + FLUSH_S
    (container,) = pod["containers"]
    start = container["startupProbe"]
    assert start["httpGet"] == container["livenessProbe"]["httpGet"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 600


def test_the_service_on_ray_serve_fits_its_schemas_and_comes_from_code_that_is_there():
    from ray.serve.schema import ServeDeploySchema

    from memr1.serving.settings import ServingConfig

    configs = [c for _, item in all_objects() for c in find(item, "serveConfigV2")]
    assert len(configs) == 1
    data = ServeDeploySchema.model_validate(yaml.safe_load(configs[0]))
    own = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text()))
    (app,) = data.applications
    assert app.import_path == own.applications[0].import_path
    assert {d.name for d in app.deployments} == {d.name for d in own.applications[0].deployments}
    module, _, name = app.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    settings = ServingConfig.from_mapping(app.args, "cluster/kubernetes/services/rayservice.yaml: args")
    assert settings.keys is not None and settings.db.startswith("postgresql")


def test_services_are_started_with_options_that_their_programs_have():
    from typer.testing import CliRunner

    from memr1.cli import app

    helped = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    commands = [
        c["command"] for _, item in all_objects() for c in find(item, "containers") for c in c if "command" in c
    ]
    programs = {command[0]: command for command in commands}
    assert set(programs) == {"memr1", "chroma"}
    for option in (part for part in programs["memr1"] if part.startswith("--")):
        assert option in helped, option
    mounted = [m["mountPath"] for _, item in all_objects() for ms in find(item, "volumeMounts") for m in ms]
    for path in (part for part in programs["memr1"] + programs["chroma"] if part.startswith("/")):
        assert any(Path(path).is_relative_to(m) for m in mounted), path


def test_images_are_made_of_files_that_are_there_and_run_as_a_user():
    extras = (ROOT / "setup.cfg").read_text()
    for path in sorted((CLUSTER / "docker").glob("Dockerfile.?pu")):
        text = path.read_text()
        assert "USER ray" in text and "USER root" not in text
        assert f"WORKDIR {HOME_IN_IMAGE}" in text
        kept = {line[1:] for line in path.with_name(path.name + ".dockerignore").read_text().split() if line[0] == "!"}
        for line in re.findall(r"^COPY --chown=ray:users (.+)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists() and source in kept, f"{path}: {source}"
        (wanted,) = re.findall(r"\.\[([\w,]+)\]", text)
        for extra in wanted.split(","):
            assert re.search(rf"^{extra} =$", extras, re.MULTILINE), f"{path}: {extra}"


def test_files_named_in_the_readme_are_there():
    text = (CLUSTER / "README.md").read_text()
    for name in re.findall(r"cluster/[\w./]+\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:launcher|kubernetes|slurm|monitoring|services)/[\w./{},]*)`", text):
        for option in ("cpu", "gpu"):
            found = name.replace("{cpu,gpu}", option)
            assert (CLUSTER / found).exists() or (CLUSTER / "kubernetes" / found).exists(), name


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda p: p.parent.name)
def test_kustomizations_build_and_what_they_build_fits(path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; it builds the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(path.parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = [o for o in yaml.safe_load_all(done.stdout) if o]
    for item in built:
        check_object(item, f"{path.parent.name}: {item['kind']}")
    (cluster,) = [o for o in built if o["kind"] == "RayCluster"]
    worker = cluster["spec"]["workerGroupSpecs"][0]
    resources = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in resources) == (path.parent.name == "gpu") == (worker["groupName"] == "gpu")


def test_slurm_script_is_a_shell_script():
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm" / "train.sbatch")], check=True, timeout=20)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(CLUSTER / "slurm" / "train.sbatch")], check=True, timeout=20)


def test_the_runtime_environment_is_one_for_ray():
    from ray.runtime_env import RuntimeEnv

    data = yaml.safe_load((ROOT / "rayjobs" / "runtime_env.yaml").read_text())
    assert data.pop("working_dir") == "."
    assert RuntimeEnv(**data)["env_vars"] == {"TOKENIZERS_PARALLELISM": "false"}


def test_dashboard_and_alerts_show_metrics_that_memr1_has():
    from memr1.rllib.telemetry import GAUGES, OTHERS

    exported = {f"ray_{name}" for name in [name for name, _ in GAUGES.values()] + list(OTHERS)}
    folder = CLUSTER / "monitoring"
    dashboard = json.loads((folder / "grafana" / "dashboards" / "memr1.json").read_text())
    rules = [r for g in yaml.safe_load((folder / "alerts.yml").read_text())["groups"] for r in g["rules"]]
    shown = " ".join([*find(dashboard, "expr"), *(r["expr"] for r in rules)])
    used = set(re.findall(r"ray_memr1_\w+", shown))
    assert used == exported, used ^ exported
    labels = {f"ray_{name}": {"run", *labels} for name, (_, *labels) in OTHERS.items()}
    for target in find(dashboard, "targets"):
        for one in target:
            name = re.search(r"ray_memr1_\w+", one["expr"]).group()
            assert set(re.findall(r"{{(\w+)}}", one["legendFormat"])) <= labels.get(name, {"run"}), one


def test_grafana_and_prometheus_files_point_at_each_other():
    folder = CLUSTER / "monitoring"
    prometheus = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert [(folder / name).is_file() for name in prometheus["rule_files"]] == [True]
    (source,) = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    dashboard = json.loads((folder / "grafana" / "dashboards" / "memr1.json").read_text())
    assert set(find(dashboard["panels"], "uid")) == {source["uid"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) >= 10
