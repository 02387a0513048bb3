"""A second run beside the first on Serve: shares, writes to both, promotion without a failed request."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from ray import serve

from sidray.client import Client
from sidray.config import Values
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.serving import promote as module
from sidray.serving.promote import promote
from sidray.serving.run import NAME
from sidray.serving.settings import GatewaySettings, RunSettings
from sidray.serving.traffic import Shares
from tests.serving.test_faults import load

SMALL = ["embedder.cpus=0.1", "recall.cpus=0.1", "writer.cpus=0.1"]  # two runs fit the CPUs of the test session
SIZED = {
    "embedder": {"autoscaling": {"min_replicas": 2, "max_replicas": 8}, "threads": 3},
    "recall": {"replicas": 5, "poll_ms": 100.0},
    "writer": {"fold_rows": 7},
}


class Cluster:
    """What promote asks of Serve, without it: a gateway whose primary is "old", and the applications of `up`."""

    def __init__(self) -> None:
        self.shares = Shares({"small": 0.1, "old": 0.9})
        self.up = {NAME, "old", "small"}
        self.settings = RunSettings.model_validate({"run": "runs/old", "variant": "dual", **SIZED})
        self.built: list[Values] = []
        self.silent: Exception | None = None

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(applications=dict.fromkeys(self.up))

    def delete(self, name: str) -> None:
        self.up.remove(name)

    def get_app_handle(self, name: str) -> SimpleNamespace:
        assert name == NAME
        return SimpleNamespace(served=_remote((GatewaySettings(), self.shares)))

    def get_deployment_handle(self, deployment: str, name: str) -> SimpleNamespace:
        assert (deployment, name) == ("Run", "old")
        if self.silent:
            raise self.silent
        return SimpleNamespace(settings=_remote(self.settings))

    def build_run(self, values: Values) -> None:
        self.built.append(values)

    def deploy(self, app: object, name: str, route_prefix: str | None) -> None:
        self.up.add(name)


def _remote(answer: object) -> SimpleNamespace:
    return SimpleNamespace(remote=lambda: SimpleNamespace(result=lambda timeout_s: answer))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(module, "serve", made)
    monkeypatch.setattr(module, "ray_cluster", nullcontext)
    monkeypatch.setattr(module, "RunFolder", SimpleNamespace(open=lambda run, variant: SimpleNamespace(name=run)))
    monkeypatch.setattr(module, "build_run", made.build_run)
    monkeypatch.setattr(module, "build_gateway", lambda values: None)
    monkeypatch.setattr(module, "deploy", made.deploy)
    return made


def test_a_run_gets_the_sizes_of_the_primary(cluster: Cluster) -> None:
    assert promote("new", "", 0.5, False, ["recall.poll_ms=50"]).weights["new"] == 0.5
    (values,) = cluster.built
    settings = RunSettings.model_validate(values)
    assert (settings.run, settings.variant) == ("new", "")
    assert settings.embedder == cluster.settings.embedder
    assert settings.recall == cluster.settings.recall.model_copy(update={"poll_ms": 50})
    assert settings.writer == cluster.settings.writer


def test_a_number_of_replicas_takes_the_place_of_the_primarys_autoscaling(cluster: Cluster) -> None:
    promote("new", "", 0.5, False, ["embedder.replicas=3"])
    embedder = RunSettings.model_validate(cluster.built[0]).embedder
    assert (embedder.replicas, embedder.autoscaling, embedder.threads) == (3, None, 3)


@pytest.mark.parametrize("silent", [KeyError("old"), TimeoutError()])
def test_without_the_primarys_settings_nothing_changes(cluster: Cluster, silent: Exception) -> None:
    cluster.silent = silent
    with pytest.raises(UserError, match="old, the primary, does not say its settings"):
        promote("new", "", 1.0, False)
    assert cluster.up == {NAME, "old", "small"}
    promote("small", "", 1.0, False)  # is up, so nobody need be asked
    assert cluster.up == {NAME, "small"}


def test_weight_0_ends_what_came_up_and_never_got_a_share(cluster: Cluster) -> None:
    cluster.up |= {"lost", "of somebody else"}
    assert promote("lost", "", 0.0, False).weights == pytest.approx(cluster.shares.weights)
    assert cluster.up == {NAME, "old", "small", "of somebody else"}
    promote("lost", "", 0.0, False)  # again: there is nothing to end
    promote("small", "", 0.0, False)
    assert cluster.up == {NAME, "old", "of somebody else"}


@pytest.fixture
def twin(debug_run: str) -> str:
    """Another run of the same steps, which has a table of its own."""
    folder = f"{debug_run}-twin"
    shutil.copytree(debug_run, folder)
    return folder


@pytest.mark.ray
def test_a_test_at_half_and_then_a_promotion(service: str, debug_run: str, twin: str) -> None:
    old, new = RunFolder.open(debug_run).name, RunFolder.open(twin).name
    seen: list[str] = []

    def search(client: Client, thread: int, turn: int) -> None:
        seen.append(client.search(f"cat {turn}").index.run)

    with load(service, search, clients=2) as failed:  # more would only take the CPUs that replicas start with
        assert promote(twin, "", 0.5, False, SMALL).weights == {old: 0.5, new: 0.5}
        with Client(service) as client:
            shared = len(seen)
            while len(seen) < shared + 60 and not failed:
                client.search("cat")
            assert set(seen[shared:]) == {old, new}
            assert {model.run for model in client.models().data} == {old, new}
            item = {"item_id": "both", "title": "in both tables", "partition": "both"}
            version = client.put_items([item]).table_version
            hits = client.search("table", partition="both", min_table_version=version).hits
            assert [hit.item_id for hit in hits] == ["both"]
        assert promote(twin, "", 1.0, False).weights == {new: 1.0}
        until = len(seen) + 20
        with Client(service) as client:
            while len(seen) < until and not failed:
                client.search("cat")
    assert failed == []
    assert seen[0] == old
    assert set(seen[-10:]) == {new}
    assert set(serve.status().applications) == {NAME, new}
    with Client(service) as client:
        assert client.item("both").title == "in both tables"  # the new run's own table has it
        assert client.index().run == new
    promote(debug_run, "", 1.0, False, SMALL)  # as the other tests expect it
    with Client(service) as client:
        client.delete_item("both")
