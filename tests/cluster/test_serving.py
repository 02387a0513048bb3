"""The RayService: serve/search.yaml with a spare of everything, the environment that serving was measured with."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from typing import Any

import pytest
import yaml

from sidray.config import build
from sidray.serving.environment import SERVE_ENVIRONMENT
from sidray.serving.settings import RunSettings, ServiceSettings
from tests.cluster.render import CLUSTER, RENDERED, Manifest, containers_of, named, pod_templates, render

every_render = pytest.mark.parametrize("name", RENDERED)


def served(manifests: list[Manifest]) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(named(manifests, "RayService", "sidray-search")["spec"]["serveConfigV2"])
    return values


def workers(manifests: list[Manifest]) -> dict[str, Any]:
    (group,) = named(manifests, "RayService", "sidray-search")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    found: dict[str, Any] = group
    return found


@every_render
def test_it_serves_what_search_yaml_says_but_for_two_differences(name: str) -> None:
    """The run's URI, and two replicas of all that answers: what rayservice.yaml says above `serveConfigV2`."""
    values = served(render(name))
    expected = yaml.safe_load((CLUSTER.parent / "serve" / "search.yaml").read_text())
    front, back = expected["applications"]
    back["args"]["run"] = "s3://BUCKET/sidray-runs/runs/RUN"
    front["args"]["gateway"]["replicas"] = 2
    back["args"]["recall"]["replicas"] = 2
    back["args"]["embedder"]["autoscaling"]["min_replicas"] = 2
    assert values == expected
    build(ServiceSettings, front["args"], "rayservice.yaml")
    build(RunSettings, back["args"], "rayservice.yaml")


def test_the_run_lies_below_the_root_that_jobs_write_to() -> None:
    manifests = render("base")
    root = named(manifests, "ConfigMap", "sidray-environment")["data"]["SIDRAY_RUNS_ROOT"]
    assert served(manifests)["applications"][1]["args"]["run"].startswith(f"{root}/runs/")


@every_render
def test_every_ray_container_has_the_environment_of_serving(name: str) -> None:
    manifests = render(name)
    data = named(manifests, "ConfigMap", "sidray-environment")["data"]
    assert {key: value for key, value in data.items() if key.startswith("RAY_SERVE_")} == SERVE_ENVIRONMENT
    for where, template in pod_templates(manifests).items():
        if not where.startswith("StatefulSet/"):
            for container in containers_of(template):
                assert {"configMapRef": {"name": "sidray-environment"}} in container["envFrom"], where


@every_render
def test_the_loss_of_a_node_leaves_a_worker_and_a_replica_of_each(name: str) -> None:
    manifests = render(name)
    group = workers(manifests)
    assert group["minReplicas"] >= 2
    labels = group["template"]["metadata"]["labels"]
    (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert (spread["maxSkew"], spread["whenUnsatisfiable"]) == (1, "DoNotSchedule")
    budget = named(manifests, "PodDisruptionBudget", "sidray-serving")["spec"]
    for selector in (spread["labelSelector"], budget["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert 1 <= budget["minAvailable"] < group["minReplicas"]
    others = [
        each
        for where, each in pod_templates(manifests).items()
        if not where.startswith("RayService/sidray-search/serving")
    ]
    assert not [
        each for each in others if budget["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]


@every_render
def test_an_upgrade_pauses_nothing(name: str) -> None:
    spec = named(render(name), "RayService", "sidray-search")["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["excludeHeadPodFromServeSvc"] is True
    assert spec["rayClusterDeletionDelaySeconds"] >= 60
    pod = workers(render(name))["template"]["spec"]
    draining = 30  # RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, where nothing sets it
    assert pod["terminationGracePeriodSeconds"] > draining


@every_render
def test_the_replicas_fit_the_fewest_workers(name: str) -> None:
    manifests = render(name)
    front, back = (each["args"] for each in served(manifests)["applications"])
    embedder = back["embedder"]
    cpus = front["gateway"]["replicas"] * front["gateway"]["cpus"] + back["writer"]["cpus"]
    cpus += back["recall"]["replicas"] * back["recall"]["cpus"]
    cpus += embedder["autoscaling"]["min_replicas"] * embedder["cpus"]
    group = workers(manifests)
    each = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert cpus <= group["minReplicas"] * each
    most = copy.deepcopy(embedder["autoscaling"])["max_replicas"]
    assert cpus + (most - embedder["autoscaling"]["min_replicas"]) * embedder["cpus"] <= group["maxReplicas"] * each


@every_render
def test_the_service_keeps_its_state_in_redis_and_redis_keeps_it(name: str) -> None:
    manifests = render(name)
    cluster = named(manifests, "RayService", "sidray-search")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "sidray-redis:6379"
    redis = named(manifests, "StatefulSet", "sidray-redis")["spec"]
    assert ("volumeClaimTemplates" in redis) == (name != "kind")
    settings = named(manifests, "ConfigMap", "sidray-redis")["data"]["redis.conf"].splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction", "dir /data"} <= set(settings)
    (container,) = containers_of(redis["template"])
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_runbook_moves_a_run_in_three_applies_none_of_which_lacks_a_run() -> None:
    """Weights name applications that are there before, at and after each apply: gateways are replaced one by one."""
    runbook = (CLUSTER / "README.md").read_text()
    steps = re.findall(r"^[123]\. (.*)$", runbook[runbook.index("**A run, for good, without a pause.**") :], re.M)[:3]
    front, first = served(render("base"))["applications"]
    assert (first["name"], front["args"]["weights"]) == ("run-a", {"run-a": 1.0})
    second = {**first, "name": "run-b"}
    texts = [[front, first], [front, first, second]]
    assert "application `run-b`" in steps[0]
    moved = yaml.safe_load(re.search(r"`weights: (\{.*?\})`", steps[1])[1])  # type: ignore[index]
    after = {**front, "args": {**front["args"], "weights": moved}}
    texts += [[after, first, second], [after, second]]
    assert "application `run-a` goes" in steps[2]
    for old, new in pairwise(texts):
        build(ServiceSettings, new[0]["args"], "rayservice.yaml")
        asked = {*old[0]["args"]["weights"], *new[0]["args"]["weights"]}
        there = {each["name"] for each in old} & {each["name"] for each in new}
        assert asked <= there


def test_the_runbook_says_what_pauses_searches_and_what_undoes_a_promotion() -> None:
    runbook = " ".join((CLUSTER / "README.md").read_text().split())
    assert "| a run, in place | `run:` of an application in `serveConfigV2`, apply | searches pause" in runbook
    assert "`model_changed`" in runbook  # the code that recall answers (recall.py)
    assert "whenever its operator restarts" in runbook
