"""Everything under cluster/ and rayjobs/ that a machine reads: parsed, checked against schemas, and its paths resolved.

Schemas: Ray's own for launcher files and runtime environments, those of `manifests.py` for Kubernetes. What the files
name in one another: test_manifest_references.py.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from memr1.config_file import load_config
from tests.unit.manifests import (
    CLUSTER,
    HOME_IN_IMAGE,
    LAUNCHERS,
    RAY,
    ROOT,
    all_objects,
    check_object,
    find,
    objects,
    pods,
)


def test_every_kubernetes_object_fits_its_schema():
    seen = [check_object(item, where) or item["kind"] for where, item in all_objects()]
    assert {"RayCluster", "RayJob", "RayCronJob", "StatefulSet", "NetworkPolicy", "PersistentVolumeClaim"} <= set(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["spec"].update(rayVersoin="1"), "rayVersoin: no such field"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].update(replicas="2"), "replicas: expected"),
        (lambda c: c["spec"]["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].update(replicas=9), "replicas is 9"),
        (
            lambda c: c["spec"]["workerGroupSpecs"][0].pop("maxReplicas"),
            r"workerGroupSpecs\[0\].maxReplicas is missing",
        ),
        (lambda c: c["spec"].pop("rayVersion"), "spec.rayVersion is missing"),
        (lambda c: c["spec"].update(gcsFaultToleranceOptions={}), "gcsFaultToleranceOptions.redisAddress is missing"),
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
    for name in re.findall(r"cluster/[\w./-]+\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:launcher|kubernetes|slurm|monitoring|services)/[\w./{},]*)`", text):
        for option in ("cpu", "gpu"):
            found = name.replace("{cpu,gpu}", option)
            assert (CLUSTER / found).exists() or (CLUSTER / "kubernetes" / found).exists(), name


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
