"""The renderer of these tests against kubectl's, where kubectl is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.render import KUBERAY, RENDERED, apply, documents, named, pod_templates, render


def by_name(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    found = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    assert len(found) == len(manifests)
    return found


@pytest.mark.parametrize("name", RENDERED)
def test_kubectl_renders_the_same(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    command = ["kubectl", "kustomize", str(RENDERED[name])]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = by_name(list(yaml.safe_load_all(printed)))
    ours = by_name(render(name))
    assert set(ours) == set(expected)
    for key, manifest in ours.items():
        assert json.dumps(manifest, sort_keys=True) == json.dumps(expected[key], sort_keys=True), key


def test_a_patch_of_a_field_that_is_not_there_is_an_error() -> None:
    for operation in ("remove", "replace"):
        with pytest.raises(AssertionError, match="/a/c is not there"):
            apply({"a": {"b": 1}}, {"op": operation, "path": "/a/c", "value": 2})
    value = {"a": [1, 2]}
    apply(value, {"op": "add", "path": "/a/-", "value": 3})
    apply(value, {"op": "remove", "path": "/a/0"})
    assert value == {"a": [2, 3]}


def test_each_file_is_whole_by_itself_and_says_what_the_rendering_copies() -> None:
    """`kubectl apply -f` of a file of the base makes what `-k` makes, and an edit of one copy alone is found."""
    rendered = by_name(render("base"))
    checked = 0
    for path in sorted((KUBERAY / "base").glob("ray*.yaml")):
        for manifest in documents(path):
            assert manifest["spec"] == rendered[manifest["kind"], manifest["metadata"]["name"]]["spec"], path.name
            checked += 1
    assert checked == 6  # the RayCluster, three RayJobs, the RayService and its PodDisruptionBudget


def test_the_readme_says_which_fields_the_services_workers_take_over() -> None:
    (copies,) = documents(KUBERAY / "nodes" / "copies.yaml")
    targets = [target for each in copies["replacements"] for target in each["targets"]]
    paths = [path for each in targets if each["select"]["kind"] == "RayService" for path in each["fieldPaths"]]
    copied = {path.rsplit(".", 1)[1] for path in paths if "workerGroupSpecs.0" in path}
    readme = (KUBERAY.parent / "README.md").read_text()
    said = re.search(r"RayService's workers take (.*?)\. What else", readme, re.S)
    assert said is not None
    assert set(re.findall(r"`(\w+)`", said[1])) == copied


def test_an_overlay_gives_the_services_workers_tolerations_and_all_pods_a_registry(tmp_path: Path) -> None:
    """As the README says: kubectl renders an overlay of both, from outside of the repository's files."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    readme = (KUBERAY.parent / "README.md").read_text()
    service = re.search(r"`(/spec/rayClusterConfig/\S+/tolerations)`", readme)
    secrets = re.search(r"`imagePullSecrets: (.*?)`", readme)
    assert service is not None
    assert secrets is not None
    tolerations = [{"key": "search", "operator": "Exists"}]
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    own = tmp_path / "kuberay" / "overlays" / "own"
    own.mkdir()
    patched = {
        ("RayCluster", "sidray"): ("/spec/workerGroupSpecs/0/template/spec/tolerations", tolerations),
        ("RayService", "sidray-search"): (service[1], tolerations),
        ("ServiceAccount", "sidray"): ("/imagePullSecrets", yaml.safe_load(secrets[1])),
    }
    patches = [
        {"target": {"kind": kind, "name": name}, "patch": json.dumps([{"op": "add", "path": path, "value": value}])}
        for (kind, name), (path, value) in patched.items()
    ]
    overlay = {"resources": ["../../base"], "patches": patches, "transformers": ["../../nodes"]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    printed = subprocess.run(["kubectl", "kustomize", str(own)], check=True, capture_output=True, text=True).stdout
    manifests = list(yaml.safe_load_all(printed))
    pods = pod_templates(manifests)
    workers = {where: each["spec"] for where, each in pods.items() if where.split("/")[2:] not in ([], ["head"])}
    assert len(workers) == 5
    assert {where: spec["tolerations"] for where, spec in workers.items()} == dict.fromkeys(workers, tolerations)
    assert "topologySpreadConstraints" in workers["RayService/sidray-search/serving"]
    assert named(manifests, "ServiceAccount", "sidray")["imagePullSecrets"] == [{"name": "REGISTRY"}]
    ray = {where: each["spec"]["serviceAccountName"] for where, each in pods.items() if where.startswith("Ray")}
    assert set(ray.values()) == {"sidray"}
