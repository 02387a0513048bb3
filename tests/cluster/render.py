"""The manifests as `kubectl kustomize` renders them, without it: resources, namespace, JSON6902 patches, replacements.

manifests = render(OVERLAYS["gpu"])         # test_render.py holds this against kubectl, where there is one
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
KUBERAY = CLUSTER / "kuberay"
RENDERED = {
    "base": KUBERAY / "base",
    "kind": KUBERAY / "overlays" / "kind",
    "gpu": KUBERAY / "overlays" / "gpu",
}
_KNOWN = {"apiVersion", "kind", "resources", "namespace", "patches", "transformers"}


def documents(path: Path) -> list[Any]:
    """Through JSON: an anchor and its aliases are one object in Python, and a patch of one would change all."""
    return [json.loads(json.dumps(each)) for each in yaml.safe_load_all(path.read_text()) if each]


@functools.cache
def _rendered(folder: Path) -> list[Manifest]:
    (kustomization,) = documents(folder / "kustomization.yaml")
    unknown = set(kustomization) - _KNOWN
    assert not unknown, f"{folder}: this file knows no {unknown}"
    manifests: list[Manifest] = []
    for resource in kustomization.get("resources", []):
        path = (folder / resource).resolve()
        manifests += _rendered(path) if path.is_dir() else documents(path)
    manifests = copy.deepcopy(manifests)
    for patch in kustomization.get("patches", []):
        (operations,) = documents(folder / patch["path"])
        for manifest in selected(manifests, patch["target"]):
            for operation in operations:
                apply(manifest, operation)
    for manifest in manifests:
        if "namespace" in kustomization and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    for transformer in kustomization.get("transformers", []):
        for each in _rendered((folder / transformer).resolve()):
            assert each["kind"] == "ReplacementTransformer"
            for replacement in each["replacements"]:
                replace(manifests, replacement)
    return manifests


def render(name: str) -> list[Manifest]:
    """Of "base", "kind" or "gpu"; a copy."""
    return copy.deepcopy(_rendered(RENDERED[name]))


def selected(manifests: list[Manifest], selector: dict[str, str]) -> Iterator[Manifest]:
    """At least one."""
    found = [
        each
        for each in manifests
        if each["kind"] == selector["kind"]
        and selector.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
    ]
    assert found, f"nothing is {selector}"
    return iter(found)


def apply(manifest: Manifest, operation: dict[str, Any]) -> None:
    """One operation of RFC 6902: add, replace or remove. A path that is not there is an error."""
    *parents, last = operation["path"].removeprefix("/").split("/")
    parent = walk(manifest, parents)
    key: Any = last
    if isinstance(parent, list):
        key = len(parent) if last == "-" else int(last)
    there = key < len(parent) if isinstance(parent, list) else key in parent
    assert there or operation["op"] == "add", f"{operation['path']} is not there"
    match operation["op"]:
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(operation["value"]))
        case "add" | "replace":
            parent[key] = copy.deepcopy(operation["value"])
        case other:
            raise AssertionError(f"this file knows no {other}")


def replace(manifests: list[Manifest], replacement: dict[str, Any]) -> None:
    """Copies a field of the source into the targets, where it is made if it is not there."""
    (source,) = selected(manifests, replacement["source"])
    value = walk(source, replacement["source"]["fieldPath"].split("."))
    for target in replacement["targets"]:
        assert target["options"] == {"create": True}
        for manifest in selected(manifests, target["select"]):
            for path in target["fieldPaths"]:
                *parents, last = path.split(".")
                walk(manifest, parents, create=True)[last] = copy.deepcopy(value)


def walk(value: Any, keys: list[str], create: bool = False) -> Any:
    for key in keys:
        if create and isinstance(value, dict):
            value.setdefault(key, {})
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = selected(manifests, {"kind": kind, "name": name})
    return found


def cluster_specs(manifests: list[Manifest]) -> dict[str, Any]:
    """Every Ray cluster that the manifests ask for: "RayJob/sidray-train" -> its spec."""
    field = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
    return {
        f"{each['kind']}/{each['metadata']['name']}": walk(each["spec"], list(field[each["kind"]]))
        for each in manifests
        if each["kind"] in field
    }


def pod_templates(manifests: list[Manifest]) -> dict[str, Any]:
    """Every pod template, of Ray and not: "RayJob/sidray-train/cpu" -> {metadata, spec}."""
    found: dict[str, Any] = {}
    for name, spec in cluster_specs(manifests).items():
        found[f"{name}/head"] = spec["headGroupSpec"]["template"]
        found |= {f"{name}/{group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    for each in manifests:
        if each["kind"] == "StatefulSet":
            found[f"StatefulSet/{each['metadata']['name']}"] = each["spec"]["template"]
    return found


def containers_of(template: Any) -> list[Any]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
