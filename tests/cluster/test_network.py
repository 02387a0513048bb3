"""Who reaches which port of whom under networkpolicy.yaml, by the rules of Kubernetes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster.render import CLUSTER, named, render


@dataclass(frozen=True)
class Pod:
    """Somebody who talks or listens. `address`: of somebody outside the cluster."""

    name: str
    namespace: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/metadata.name": "sidray"})
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def namespace(name: str, **labels: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": name, **{f"sidray/{key}": value for key, value in labels.items()}}


SERVICE = {"app.kubernetes.io/component": "serving", "app.kubernetes.io/name": "sidray", "ray.io/is-ray-node": "yes"}
HEAD = Pod("head", labels={"app.kubernetes.io/name": "sidray", "ray.io/is-ray-node": "yes"})
WORKER = Pod("serving worker", labels=SERVICE)
REDIS = Pod("redis", labels={"app.kubernetes.io/name": "sidray-redis"})
NEIGHBOUR = Pod("another pod of the namespace")
OPERATOR = Pod("operator", namespace("kuberay-system"), {"app.kubernetes.io/name": "kuberay-operator"})
BESIDE_OPERATOR = Pod("another pod of the operator's namespace", namespace("kuberay-system"))
INGRESS = Pod("ingress", namespace("ingress", clients="allowed"))
PROMETHEUS = Pod("prometheus", namespace("monitoring"))
STRANGER = Pod("stranger", namespace("default"))
WORLD = Pod("the internet", {}, address="93.184.216.34")
METADATA = Pod("the cloud's metadata", {}, address="169.254.169.254")
DNS = Pod("dns", namespace("kube-system"))

EVERYBODY = (HEAD, WORKER, REDIS, NEIGHBOUR, OPERATOR, BESIDE_OPERATOR, INGRESS, PROMETHEUS, STRANGER, WORLD)
GCS, DASHBOARD, CLIENT, HTTP, METRICS, AGENT = 6379, 8265, 10001, 8000, 8080, 52365


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_peer(peer: dict[str, Any], pod: Pod) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        inside = [ipaddress.ip_network(each) for each in (block["cidr"], *block.get("except", []))]
        address = ipaddress.ip_address(pod.address or "10.0.0.1")
        return address in inside[0] and not any(address in each for each in inside[1:])
    if pod.address:
        return False
    own = {"matchLabels": {"kubernetes.io/metadata.name": "sidray"}}
    return matches(peer.get("namespaceSelector", own), pod.namespace) and matches(
        peer.get("podSelector", {}), pod.labels
    )


def rules(direction: str, pod: Pod) -> Iterator[dict[str, Any]]:
    """Of the policies that select the pod, which must be one of the namespace's."""
    for policy in render("base"):
        if policy["kind"] == "NetworkPolicy" and matches(policy["spec"]["podSelector"], pod.labels):
            yield from policy["spec"].get(direction, [])


def allowed(direction: str, own: Pod, other: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether `own` of the namespace may be reached by ("ingress") or reach ("egress") the other on a port."""
    side = "from" if direction == "ingress" else "to"
    return any(
        any(is_peer(peer, other) for peer in rule[side])
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules(direction, own)
    )


@pytest.mark.parametrize("other", EVERYBODY, ids=lambda pod: str(pod.name))
@pytest.mark.parametrize("own", [HEAD, WORKER], ids=lambda pod: str(pod.name))
def test_who_reaches_ray(own: Pod, other: Pod) -> None:
    every = {GCS, DASHBOARD, CLIENT, HTTP, METRICS, AGENT}
    expected: dict[str, set[int]] = {
        HEAD.name: every,
        WORKER.name: every,
        OPERATOR.name: {DASHBOARD, HTTP},
        INGRESS.name: {HTTP} if own is WORKER else set(),
        PROMETHEUS.name: {METRICS},
    }
    reached = {port for port in every if allowed("ingress", own, other, port)}
    assert reached == expected.get(other.name, set())


@pytest.mark.parametrize("other", EVERYBODY, ids=lambda pod: str(pod.name))
def test_ray_alone_reaches_redis(other: Pod) -> None:
    assert allowed("ingress", REDIS, other, 6379) == (other in (HEAD, WORKER))
    assert not allowed("ingress", REDIS, other, 22)


@pytest.mark.parametrize("own", [HEAD, WORKER], ids=lambda pod: str(pod.name))
def test_ray_reaches_names_the_store_redis_and_itself(own: Pod) -> None:
    assert allowed("egress", own, WORLD, 443)
    assert allowed("egress", own, REDIS, 6379)
    assert allowed("egress", own, HEAD, GCS)
    assert allowed("egress", own, DNS, 53, "UDP")
    assert not allowed("egress", own, WORLD, 80)
    assert not allowed("egress", own, WORLD, 22)
    assert not allowed("egress", own, STRANGER, 8080)
    for port in (80, 443):
        assert not allowed("egress", own, METADATA, port)


def test_others_of_the_namespace_reach_nothing_but_names() -> None:
    for own in (REDIS, NEIGHBOUR):
        assert allowed("egress", own, DNS, 53, "UDP")
        assert not allowed("egress", own, WORLD, 443)
        assert not allowed("egress", own, HEAD, DASHBOARD)


def test_what_no_policy_allows_is_denied() -> None:
    """A pod that no policy selects may do everything; this one selects all, both ways."""
    policy = named(render("base"), "NetworkPolicy", "default-deny")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for each in render("base"):
        if each["kind"] == "NetworkPolicy":
            sides = {"Ingress": "ingress", "Egress": "egress"}
            given = {side for side, key in sides.items() if key in each["spec"]}
            assert given <= set(each["spec"]["policyTypes"])
            for rule in (*each["spec"].get("ingress", []), *each["spec"].get("egress", [])):
                assert rule.get("from", rule.get("to"))  # an empty list means everybody


def test_the_operator_is_installed_where_the_policy_looks_for_it() -> None:
    assert "--namespace kuberay-system" in (CLUSTER / "README.md").read_text()
    assert "kubectl label namespace" in (CLUSTER / "README.md").read_text()
