"""The application: what an operator writes, and what a run must have."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from sidray import storage
from sidray.config import build
from sidray.errors import UserError
from sidray.serving.app import build_gateway, build_run
from sidray.serving.run import running_service, serve_run, url_of
from sidray.serving.run_ingress import RunIngress
from sidray.serving.settings import EmbedderSettings, RunSettings, ServiceSettings
from tests.serving.runs import STEPS, tiny_run

YAML = Path(__file__).resolve().parents[2] / "serve" / "search.yaml"


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run folder on disk."""
    tiny = tiny_run(tmp_path, 6)
    recipe = yaml.safe_dump({**tiny.recipe.dump(), "variants": {}})
    storage.write_bytes(storage.join(tiny.uri, "recipe.yaml"), recipe.encode())
    storage.write_json(storage.join(tiny.uri, "steps.json"), {tiny.label: STEPS})
    return tiny.uri


def test_a_finished_run_is_an_application(run: str) -> None:
    assert isinstance(build_run({"run": run, "embedder": {"autoscaling": {"max_replicas": 2}}}), Application)
    assert isinstance(build_gateway({"weights": {"a": 0.9, "b": 0.1}, "shadows": ["c"]}), Application)


def test_a_gateway_that_stops_has_the_time_for_a_write_that_came_last() -> None:
    app: Any = build_gateway({"weights": {"a": 1}, "gateway": {"write_timeout_s": 100}})
    assert app._bound_deployment._deployment_config.graceful_shutdown_timeout_s > 30 + 100  # 30 s it is still sent some


async def test_an_application_says_what_it_was_built_from(run: str) -> None:
    values = {"run": run, "embedder": {"autoscaling": {"max_replicas": 2}}, "recall": {"replicas": 5}}
    app: Any = build_run(values)
    ingress = RunIngress(*app._bound_deployment.init_args)
    assert await ingress.settings() == RunSettings.model_validate(values)
    assert (await ingress.info()).shards == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "weights: Field required"),
        ({"weights": {}}, "weights: Dictionary should have at least 1 item"),
        ({"weights": {"a": 0}}, "weights.a: Input should be greater than 0"),
        ({"weights": {"a": 1}, "shadow": ["b"]}, "shadow: unknown key (did you mean 'shadows'?)"),
        ({"weights": {"a": 1}, "gateway": {"keys": "no/such/file"}}, "no/such/file"),
    ],
)
def test_mistakes_of_the_gateway_are_named(args: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        build_gateway(args)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"run": "no/such/folder"}, "is no run: it has no recipe.yaml"),
        ({"variant": "dual"}, "the run has no variant 'dual'"),
        ({"replica": 2}, "replica: unknown key"),
        ({"embedder": {"replica": 2}}, "embedder.replica: unknown key (did you mean 'replicas'?)"),
        ({"recall": {"replicas": 0}}, "recall.replicas"),
        ({"recall": {"max_ongoing": 8, "autoscaling": {"target_ongoing_requests": 8}}}, "would never scale"),
        ({"embedder": {"autoscaling": {"target_ongoing_requests": 8}}}, "target_ongoing_requests: unknown key"),
        ({"embedder": {"autoscaling": {"min_replicas": 5, "max_replicas": 2}}}, "min_replicas=5 is more than"),
    ],
)
def test_mistakes_are_named(run: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        build_run({"run": run, **args})
    assert says in str(caught.value)


@pytest.mark.parametrize("role", ["text-weights", "table", "index"])
def test_an_unfinished_run_is_refused(run: str, role: str) -> None:
    storage.delete(storage.join(run.rsplit("/", 2)[0], "steps", STEPS[role], "manifest.json"))
    with pytest.raises(UserError, match=f"step {role} of .* is not done"):
        build_run({"run": run})


def test_a_port_in_use_is_refused_before_anything_starts(run: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve_run(run, "", "127.0.0.1", port)


def test_a_host_of_another_machine_is_refused(run: str) -> None:
    with pytest.raises(UserError, match="cannot listen on"), running_service(run, "", "192.0.2.77", 8123):
        pass


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_url(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_the_shipped_yaml_is_what_serve_and_the_service_take() -> None:
    """Its values are the defaults, and no key is left out."""
    values = yaml.safe_load(YAML.read_text())
    front, back = ServeDeploySchema.model_validate(values).applications
    for application, builder in ((front, build_gateway), (back, build_run)):
        assert application.import_path == f"{builder.__module__}:{builder.__name__}"  # no folder but the package's
    service = build(ServiceSettings, front.args, "search.yaml")
    assert service == ServiceSettings(weights={back.name: 1.0})
    settings = build(RunSettings, back.args, "search.yaml")
    defaults = RunSettings(run=settings.run)
    changed = {**settings.embedder.model_dump(), "autoscaling": None}  # the one value that it says it changes
    assert EmbedderSettings.model_validate(changed) == defaults.embedder
    assert settings.model_copy(update={"embedder": defaults.embedder}) == defaults
    for whole, given in ((service, front.args), (settings, back.args)):
        assert set(type(whole).model_fields) == set(given)
        for section in {"gateway", "embedder", "recall", "writer"} & set(given):
            every = set(type(getattr(whole, section)).model_fields)
            assert every - set(given[section]) <= {"autoscaling", "replicas"}  # of which one is given
