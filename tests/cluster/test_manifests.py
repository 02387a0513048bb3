"""Every manifest, as it is applied: schemas, versions, images, rights, sizes."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest

from tests.cluster.fields import SPECS, complaints
from tests.cluster.render import (
    CLUSTER,
    KUBERAY,
    RENDERED,
    cluster_specs,
    containers_of,
    documents,
    named,
    pod_templates,
    render,
    walk,
)

OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
OWN_VERSION = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["project"]["version"]
IMAGES = {
    f"sidray-cpu:{OWN_VERSION}": "cpu.Dockerfile",
    f"sidray-cuda:{OWN_VERSION}": "cuda.Dockerfile",
}
REDIS_IMAGE = "redis:7.4.2-bookworm"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

every_render = pytest.mark.parametrize("name", RENDERED)


def memory(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]] if quantity[-2:] in UNITS else int(quantity)


def distinct_pods() -> list[Any]:
    """Each pod once: jobs and overlays share them."""
    seen: dict[str, Any] = {}
    for name in RENDERED:
        for where, template in pod_templates(render(name)).items():
            seen.setdefault(json.dumps(template, sort_keys=True), pytest.param(template, id=f"{name}-{where}"))
    return list(seen.values())


def core_manifests() -> list[Any]:
    seen: dict[str, Any] = {}
    for name in RENDERED:
        for each in render(name):
            if not each["apiVersion"].startswith("ray.io/"):
                case = pytest.param(each, id=f"{name}-{each['kind']}-{each['metadata']['name']}")
                seen.setdefault(json.dumps(each, sort_keys=True), case)
    return list(seen.values())


@pytest.mark.parametrize("manifest", core_manifests())
def test_core_manifests_fit_the_strict_schemas(manifest: dict[str, Any]) -> None:
    for kubernetes in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, kubernetes, strict=True)


@pytest.mark.parametrize("template", distinct_pods())
def test_pods_fit_the_strict_schemas(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    pod["metadata"] = {"name": "pod", **template.get("metadata", {})}
    for kubernetes in (OLDEST, NEWEST):
        kubernetes_validate.validate(pod, kubernetes, strict=True)


@every_render
def test_ray_resources_have_no_unknown_field(name: str) -> None:
    found = [each for each in render(name) if each["apiVersion"].startswith("ray.io/")]
    assert {each["kind"] for each in found} == set(SPECS)
    for each in found:
        assert each["apiVersion"] == "ray.io/v1"
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        assert complaints(each["spec"], SPECS[each["kind"]]) == []
        for section in ("resources", "securityContext"):
            options = cluster_specs([each]).popitem()[1]["autoscalerOptions"]
            container = {"name": "autoscaler", "image": "x", section: options[section]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
            kubernetes_validate.validate(pod, NEWEST, strict=True)


def test_complaints_name_the_field() -> None:
    spec = {
        "entrypoint": "x",
        "entryPoint": "x",
        "backoffLimit": "2",
        "rayClusterSpec": {"workerGroupSpecs": [{"a": 1}]},
    }
    assert complaints(spec, SPECS["RayJob"]) == [
        "spec.entryPoint is unknown",
        "spec.backoffLimit is a str, not a int",
        "spec.rayClusterSpec.workerGroupSpecs.0.a is unknown",
    ]


@every_render
def test_kuberay_accepts_every_cluster(name: str) -> None:
    """What KubeRay's own validation asks of a cluster, and what a cluster without it would lack."""
    for where, spec in cluster_specs(render(name)).items():
        assert len(where.split("/")[1]) <= 47
        assert spec["authOptions"] == {"mode": "token"}, where
        assert spec["enableInTreeAutoscaling"], where
        assert spec["autoscalerOptions"]["version"] == "v2", where
        templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
        assert {each["spec"]["restartPolicy"] for each in templates} == {"Never"}, where
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", where
        variables = [entry["name"] for each in templates for c in containers_of(each) for entry in c.get("env", [])]
        assert not variables, "Redis' address and password, and the token, come from KubeRay"
        # A lost head ends a job's driver with it: only what outlives its driver needs Redis.
        assert ("gcsFaultToleranceOptions" in spec) == (not where.startswith("RayJob/")), where
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], where


@every_render
def test_one_version_of_ray(name: str) -> None:
    specs = cluster_specs(render(name))
    assert {spec["rayVersion"] for spec in specs.values()} == {version("ray")}


@every_render
def test_one_image_for_cpus_and_one_for_gpus(name: str) -> None:
    for where, template in pod_templates(render(name)).items():
        for container in containers_of(template):
            if where == "StatefulSet/sidray-redis":
                assert container["image"] == REDIS_IMAGE
                continue
            on_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            kind = "cuda" if on_gpu else "cpu"
            assert container["image"] == f"sidray-{kind}:{OWN_VERSION}", where
            tolerated = [each["key"] for each in template["spec"].get("tolerations", [])]
            assert tolerated == (["nvidia.com/gpu"] if on_gpu else []), where
    for image, dockerfile in IMAGES.items():
        assert f"-t {image} ." in (CLUSTER / "docker" / dockerfile).read_text()
        assert f"-t {image} ." in (CLUSTER / "README.md").read_text()


def test_the_gpu_overlay_alone_has_gpus() -> None:
    for name in RENDERED:
        gpus = {where for where in pod_templates(render(name)) if where.endswith("/gpu")}
        jobs = {f"RayJob/sidray-{job}/gpu" for job in ("train", "embed", "index")}
        assert gpus == ({"RayCluster/sidray/gpu", *jobs} if name == "gpu" else set())


@every_render
def test_every_container_has_requests_limits_and_no_rights(name: str) -> None:
    manifests = render(name)
    autoscalers = {where: spec["autoscalerOptions"] for where, spec in cluster_specs(manifests).items()}
    of_pods = {where: containers_of(template) for where, template in pod_templates(manifests).items()}
    for where, found in (of_pods | {where: [each] for where, each in autoscalers.items()}).items():
        for container in found:
            resources, rights = container["resources"], container["securityContext"]
            assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}, where
            assert resources["requests"]["memory"] == resources["limits"]["memory"], where
            assert rights["allowPrivilegeEscalation"] is False, where
            assert rights["capabilities"] == {"drop": ["ALL"]}, where
            assert not {"privileged", "runAsUser", "runAsNonRoot"} & set(rights), where
    for where, template in pod_templates(manifests).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] > 0, where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert pod["automountServiceAccountToken"] is where.endswith("/head"), where  # the autoscaler's
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], where
    labels = named(manifests, "Namespace", "sidray")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@every_render
def test_the_object_store_fits_its_memory(name: str) -> None:
    for where, spec in cluster_specs(render(name)).items():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
            volumes = {each["name"]: each for each in pod["volumes"]}
            shared = volumes[mounts["/dev/shm"]]["emptyDir"]
            assert shared["medium"] == "Memory", where
            store = int(group["rayStartParams"]["object-store-memory"])
            limit = memory(pod["containers"][0]["resources"]["limits"]["memory"])
            assert store <= memory(shared["sizeLimit"]) <= limit // 2, where
            assert mounts["/tmp/ray"] == "ray-logs", "KubeRay mounts the volume of this name for the autoscaler"


@every_render
def test_nothing_is_exposed(name: str) -> None:
    manifests = render(name)
    services = [each for each in manifests if each["kind"] == "Service"]
    assert [each["metadata"]["name"] for each in services] == ["sidray-redis"]
    assert all(each["spec"].get("type", "ClusterIP") == "ClusterIP" for each in services)
    assert not {"Ingress", "HTTPRoute", "Gateway", "Secret"} & {each["kind"] for each in manifests}
    text = json.dumps(manifests)
    for word in ("LoadBalancer", "NodePort", "enableIngress", "serviceType", "hostPort"):
        assert word not in text


@every_render
def test_names_that_manifests_refer_to_are_there(name: str) -> None:
    manifests = render(name)
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    secrets = {each["metadata"]["name"]: set(each["stringData"]) for each in examples()}
    for where, template in pod_templates(manifests).items():
        pod = template["spec"]
        for container in containers_of(template):
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in there, where
                else:
                    assert source["secretRef"]["name"] in secrets, where
            volumes = {volume["name"] for volume in pod["volumes"]}
            claims = walk(named(manifests, "StatefulSet", "sidray-redis"), ["spec"]).get("volumeClaimTemplates", [])
            volumes |= {each["metadata"]["name"] for each in claims} if where.startswith("StatefulSet") else set()
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, where
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there, where
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in there, where
    for spec in cluster_specs(manifests).values():
        if options := spec.get("gcsFaultToleranceOptions"):
            host, port = options["redisAddress"].split(":")
            ports = named(manifests, "Service", host)["spec"]["ports"]
            assert int(port) in [each["port"] for each in ports]
            reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
            assert reference["key"] in secrets[reference["name"]]
    assert {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"} == {"sidray"}


def examples() -> list[dict[str, Any]]:
    return documents(KUBERAY / "base" / "secrets.example.yaml")


def test_no_secret_is_committed() -> None:
    """The example has names alone, and is applied by nothing."""
    assert {value for each in examples() for value in each["stringData"].values()} == {""}
    for path in KUBERAY.rglob("*.yaml"):
        if path.name != "secrets.example.yaml":
            assert "kind: Secret\n" not in path.read_text(), path
        if path.name == "kustomization.yaml":
            named_there = documents(path)[0]["resources"]
            assert not [each for each in named_there if "secret" in each], path
