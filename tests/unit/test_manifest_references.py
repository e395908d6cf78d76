"""What the files under cluster/kubernetes name in one another, and what the overlays build.

Everything that is named is defined in the tree, or is listed in cluster/README.md as something that you bring.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests import CLUSTER, KUSTOMIZATIONS, all_objects, check_object, find, objects, pods

NAMESPACE = "memr1"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # Kubernetes gives it to every namespace
README = (CLUSTER / "README.md").read_text()
OBJECTS = list(all_objects())
OVERLAYS = [path for path in KUSTOMIZATIONS if path.parent.parent.name == "overlays"]


def named(kind: str) -> set[str]:
    return {item["metadata"]["name"] for _, item in OBJECTS if item["kind"] == kind}


def yours() -> dict[str, str]:
    """What the README lists as yours to create: name and the rest of its line."""
    return dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", README.split("## What you create")[1], re.MULTILINE))


def pods_of(item: dict[str, Any]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and specification of the pods that an object makes. KubeRay labels those of its clusters."""
    ray = item["kind"].startswith("Ray")
    for template in find(item, "template"):
        labels = template.get("metadata", {}).get("labels", {})
        yield labels | ({"ray.io/cluster": item["metadata"]["name"]} if ray else {}), template["spec"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    known = {"matchLabels", "matchExpressions"}
    assert set(selector) <= known, selector
    exact = all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "Exists" for rule in rules), rules
    return exact and all(rule["key"] in labels for rule in rules)


PODS = [(where, labels, spec) for where, item in OBJECTS for labels, spec in pods_of(item)]


def ports(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [port for container in spec["containers"] for port in container.get("ports", [])]


def test_volumes_that_are_mounted_are_there_and_what_they_hold_is_defined_or_yours():
    claims, maps = named("PersistentVolumeClaim"), named("ConfigMap")
    templates = {t["metadata"]["name"] for _, i in OBJECTS for ts in find(i, "volumeClaimTemplates") for t in ts}
    mounts = 0
    for where, _, spec in PODS:
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes or mount["name"] in templates, f"{where}: {mount}"
                mounts += 1
        for volume in volumes.values():
            kinds = {k: v for k, v in volume.items() if k != "name"}
            assert set(kinds) <= {"persistentVolumeClaim", "secret", "configMap", "emptyDir"}, f"{where}: {volume}"
            if "persistentVolumeClaim" in kinds:
                assert kinds["persistentVolumeClaim"]["claimName"] in claims, f"{where}: {volume}"
            if "configMap" in kinds:
                assert kinds["configMap"]["name"] in maps, f"{where}: {volume}"
    assert mounts >= 8


def test_secrets_are_yours_and_the_readme_says_how_to_make_each_with_the_keys_that_are_read():
    wanted: dict[str, set[str]] = {}
    for _, item in OBJECTS:
        for name in find(item, "secretName"):
            wanted.setdefault(name, set())
        for reference in find(item, "secretKeyRef"):
            wanted.setdefault(reference["name"], set()).add(reference["key"])
        for options in find(item, "authOptions"):
            wanted[options["secretName"]].add("auth_token")  # what KubeRay reads
    for _, _, spec in PODS:
        for volume in (v for v in spec.get("volumes", []) if "secret" in v):
            (mount,) = {m["mountPath"] for ms in find(spec, "volumeMounts") for m in ms if m["name"] == volume["name"]}
            files = {p.rpartition("/")[2] for p in re.findall(rf"{mount}/[\w.]+", str(list(find(spec, "command"))))}
            wanted[volume["secret"]["secretName"]] |= files
    assert set(wanted) == {"memr1-ray-token", "memr1-keys", "memr1-postgres"}
    assert wanted["memr1-keys"] == {"keys.json"} and not named("Secret")
    for name, keys in wanted.items():
        (made,) = re.findall(rf"^kubectl -n {NAMESPACE} create secret generic {name} (.+)$", README, re.MULTILINE)
        assert name in yours()
        for key in keys:
            assert f"--from-literal={key}=" in made or f"--from-file={key}" in made, f"{name}: {key}"


def test_everything_is_in_the_one_namespace_and_no_service_account_is_named_that_is_not_there():
    assert named("Namespace") == {NAMESPACE}
    base = yaml.safe_load((CLUSTER / "kubernetes" / "base" / "kustomization.yaml").read_text())
    assert base["namespace"] == NAMESPACE
    for where, item in OBJECTS:
        if item["kind"] != "Namespace":
            inside = where.startswith("cluster/kubernetes/base/")  # kustomize fills it in
            assert item["metadata"].get("namespace", NAMESPACE if inside else None) == NAMESPACE, where
        assert set(find(item, "serviceAccountName")) <= named("ServiceAccount"), where
    for name in re.findall(r"(?:create namespace|kubectl -n) ([\w-]+)", README):
        assert name == NAMESPACE, name


def test_a_policy_lets_in_the_namespaces_of_the_readme_and_the_operator_is_installed_into_its_own():
    selectors = [s for _, item in OBJECTS for s in find(item, "namespaceSelector")]
    assert all(set(s) == {"matchLabels"} and set(s["matchLabels"]) == {NAMESPACE_LABEL} for s in selectors), selectors
    chosen = {s["matchLabels"][NAMESPACE_LABEL] for s in selectors}
    listed = {name for name, line in yours().items() if line.startswith("namespace ")}
    assert chosen == listed == {"kuberay-system", "monitoring"}
    (install,) = re.findall(r"^helm install .+$", README, re.MULTILINE)
    (into,) = re.findall(r" -n ([\w-]+)", install)
    assert into in chosen and "--create-namespace" in install and re.search(r" --version \d+\.\d+\.\d+ ", install)


def test_what_the_readme_applies_is_there_and_gets_its_namespace():
    applied = re.findall(r"^kubectl (-n \w+ )?apply ((?:-[fk] \S+ ?)+)$", README, re.MULTILINE)
    for namespace, arguments in applied:
        for flag, name in re.findall(r"-([fk]) (\S+)", arguments):
            path = CLUSTER.parent / name
            assert path.is_dir() if flag == "k" else path.is_file(), name
            for item in objects(path) if flag == "f" else ():
                has = item["kind"] == "Namespace" or "namespace" in item["metadata"]
                assert has or namespace == f"-n {NAMESPACE} ", f"{name}: {item['kind']} would go to another namespace"
    files = {Path(name).name for _, arguments in applied for name in arguments.split()[1::2]}
    assert files >= {"namespace.yaml", "storage.yaml", "network-policy.yaml", "rayjob.yaml", "raycronjob.yaml", "gpu"}


def test_clusters_services_and_hosts_that_are_named_are_there_or_yours():
    for where, item in OBJECTS:
        for selector in find(item, "clusterSelector"):
            assert selector == {"ray.io/cluster": "memr1"} and "memr1" in named("RayCluster"), where
        for service in find(item, "serviceName"):
            assert service in named("Service"), where
        for host in re.findall(rf"[@/]([\w-]+)\.{NAMESPACE}\.svc", str(item)):
            assert host in named("Service") or host in yours(), f"{where}: {host}"
    heads = {f"{name}-head-svc" for name in named("RayCluster")}  # as KubeRay names them
    assert set(re.findall(r"service/([\w-]+)", README)) <= heads | named("Service")


def test_services_policies_and_monitors_select_pods_that_are_there_and_ports_that_they_open():
    for where, item in OBJECTS:
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            chosen = [s for _, labels, s in PODS if selects({"matchLabels": spec["selector"]}, labels)]
            wanted = [p.get("targetPort", p["port"]) for p in spec["ports"]]
        elif item["kind"] == "NetworkPolicy":
            chosen = [s for _, labels, s in PODS if selects(spec["podSelector"], labels)]
            wanted = [p["port"] for rule in spec.get("ingress", []) for p in rule.get("ports", [])]
        elif item["kind"] == "PodMonitor":
            chosen = [s for _, labels, s in PODS if selects(spec["selector"], labels)]
            wanted = [p["port"] for p in spec["podMetricsEndpoints"]]
            assert all(wanted[0] in [p["name"] for p in ports(s)] for s in chosen), where
        elif item["kind"] == "StatefulSet":
            (template,) = find(item, "template")
            assert selects(spec["selector"], template["metadata"]["labels"]), where
            continue
        else:
            continue
        opened = {value for s in chosen for p in ports(s) for value in (p["name"], p["containerPort"])}
        assert chosen and set(wanted) <= opened, f"{where}: {wanted}"
    for where, _, spec in PODS:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for found in find(spec, probe):
                assert found["httpGet"]["port"] in [p["name"] for p in ports(spec)], f"{where}: {probe}"


def test_a_name_that_is_nowhere_is_found(monkeypatch):
    """The checks above, each against a tree with one mistake."""
    import tests.unit.test_manifest_references as here

    def broken(kind: str, change: Any) -> None:
        items = copy.deepcopy(OBJECTS)
        for _, item in items:
            if item["kind"] == kind:
                change(item)
        monkeypatch.setattr(here, "OBJECTS", items)
        monkeypatch.setattr(here, "PODS", [(w, labels, s) for w, i in items for labels, s in pods_of(i)])

    def rename(item: dict[str, Any]) -> None:
        item["metadata"]["name"] += "-old"

    for kind, check in (
        ("PersistentVolumeClaim", test_volumes_that_are_mounted_are_there_and_what_they_hold_is_defined_or_yours),
        ("RayCluster", test_clusters_services_and_hosts_that_are_named_are_there_or_yours),
        ("Service", test_clusters_services_and_hosts_that_are_named_are_there_or_yours),
        (
            "Namespace",
            test_everything_is_in_the_one_namespace_and_no_service_account_is_named_that_is_not_there,
        ),
    ):
        broken(kind, rename)
        with pytest.raises(AssertionError):
            check()

    def elsewhere(item: dict[str, Any]) -> None:
        for selector in find(item, "namespaceSelector"):
            selector["matchLabels"] = {NAMESPACE_LABEL: "default"}

    broken("NetworkPolicy", elsewhere)
    with pytest.raises(AssertionError):
        test_a_policy_lets_in_the_namespaces_of_the_readme_and_the_operator_is_installed_into_its_own()
    broken("StatefulSet", lambda item: next(find(item, "containers"))[0]["ports"][0].update(containerPort=1))
    with pytest.raises(AssertionError):
        test_services_policies_and_monitors_select_pods_that_are_there_and_ports_that_they_open()
    broken("RayService", lambda item: item["spec"]["rayClusterConfig"]["authOptions"].update(secretName="other"))
    with pytest.raises(AssertionError):
        test_secrets_are_yours_and_the_readme_says_how_to_make_each_with_the_keys_that_are_read()


# -- overlays -------------------------------------------------------------------------------------------------------


def build(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder, as far as ours use it: resources, namespace, images and JSON patches.
    Raises AssertionError for a resource, an image or a target that is not there."""
    data = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(data) <= {"apiVersion", "kind", "namespace", "resources", "images", "patches"}, sorted(data)
    built: list[dict[str, Any]] = []
    for name in data["resources"]:
        path = folder / name
        assert path.exists(), f"{folder}: {name}"
        built += build(path) if path.is_dir() else objects(path)
    for item in built:
        if item["kind"] != "Namespace":
            item["metadata"].setdefault("namespace", data["namespace"])
    for image in data.get("images", []):
        containers = (c for item in built for found in find(item, "containers") for c in found)
        users = [c for c in containers if c["image"].split(":")[0] == image["name"]]
        assert users, f"{folder}: nobody uses {image['name']}"
        for container in users:
            container["image"] = f"{image['newName']}:{image['newTag']}"
    for patch in data.get("patches", []):
        wanted = patch["target"]
        (target,) = [i for i in built if (i["kind"], i["metadata"]["name"]) == (wanted["kind"], wanted["name"])]
        for operation in yaml.safe_load(patch["patch"]):
            apply(target, operation)
    return built


def apply(target: Any, operation: dict[str, Any]) -> None:
    """One `add` or `replace` of a JSON patch (RFC 6902); what is replaced, and the place of what is added, exists."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].lstrip("/").split("/")]
    for part in path:
        target = target[int(part) if isinstance(target, list) else part]
    assert isinstance(target, dict), f"{operation['path']}: a list"
    assert operation["op"] in ("add", "replace") and (operation["op"] == "add" or last in target), operation["path"]
    target[last] = operation["value"]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.parent.name)
def test_overlays_build_and_what_they_build_fits(path):
    built = build(path.parent)
    for item in built:
        check_object(item, f"{path.parent.name}: {item['kind']}")
    (cluster,) = [o for o in built if o["kind"] == "RayCluster"]
    worker = cluster["spec"]["workerGroupSpecs"][0]
    (spec,) = [s for s in pods(worker) if s["containers"][0]["name"] == "ray-worker"]
    resources = spec["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in resources) == (path.parent.name == "gpu") == (worker["groupName"] == "gpu")
    images = {c["image"] for i in built for cs in find(i, "containers") for c in cs}
    assert len(images) == 1 and images.pop().startswith(f"registry.example.com/memr1-{path.parent.name}:")


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.parent.name)
def test_kubectl_builds_the_same(path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; the overlays are built by this file alone")
    done = subprocess.run(["kubectl", "kustomize", str(path.parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    def by_name(items: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(i["kind"], i["metadata"]["name"]): i for i in items if i}

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(build(path.parent))


def test_a_patch_that_hits_nothing_is_found(tmp_path):
    shutil.copytree(CLUSTER / "kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "gpu"
    text = (overlay / "kustomization.yaml").read_text()
    for old, new in (
        ("/containers/0/resources", "/containers/1/resources"),
        ("workerGroupSpecs/0/groupName", "workerGroupSpecs/0/group"),
        ("name: memr1}", "name: memr2}"),
        ("../../base", "../../bases"),
        ("name: memr1-cpu", "name: memr1-tpu"),
    ):
        assert old in text
        (overlay / "kustomization.yaml").write_text(text.replace(old, new))
        with pytest.raises((AssertionError, LookupError, ValueError)):
            build(overlay)
