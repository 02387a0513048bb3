"""The renderer of these tests against kubectl's, where kubectl is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster.render import KUBERAY, RENDERED, apply, documents, render


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
