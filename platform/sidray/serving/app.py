"""The Serve applications: one for each run (embedder, recall, writer), and the gateway in front of them.

serve.run(build_run({"run": "sidray-runs/runs/smgr-1a2b", "embedder": {"replicas": 2}}), name="a", route_prefix=None)
serve.run(build_gateway({"weights": {"a": 1}}), name="sidray")
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from sidray.config import Values, build
from sidray.finished import RunFolder
from sidray.retrieval.collection import Collection
from sidray.retrieval.shards import all_shards
from sidray.serving.auth import Keys
from sidray.serving.embedder import Embedder
from sidray.serving.gateway import Gateway
from sidray.serving.handles import recall_names
from sidray.serving.messages import RunInfo
from sidray.serving.recall import Recall
from sidray.serving.run_ingress import RunIngress
from sidray.serving.settings import (
    DeploymentSettings,
    EmbedderSettings,
    ReplicaSettings,
    RunSettings,
    ServiceSettings,
)
from sidray.serving.traffic import Shares
from sidray.serving.writer_replica import WriterReplica

DRAINING_S = 30.0  # for which Serve still sends requests to a gateway that is to stop: proxies must hear of it
CONSTRUCTOR_ATTEMPTS = 3  # a replica that cannot load will not load at the twentieth attempt


def build_run(args: Values) -> Application:
    """`args`: RunSettings. UserError for an unknown key, and for a run that is none or is not finished."""
    settings = build(RunSettings, args, "the run's application")
    run = RunFolder.open(settings.run, settings.variant)
    for role in ("text-weights", run.trained_role, "table", "index"):
        run.manifest(role)
    collection = Collection.of(run)
    collection.check()
    queue, gpus = settings.embedder.max_queued, settings.embedder.gpus
    embedder = _deployment(Embedder, settings.embedder, max_queued_requests=queue, gpus=gpus)
    queue, gpus = settings.recall.max_queued, settings.recall.gpus
    shards = all_shards(collection.pointer().current.shards)
    recall = _deployment(Recall, settings.recall, max_queued_requests=queue, gpus=gpus)
    recalls = [
        recall.options(name=name).bind(run, settings.recall, shard)
        for name, shard in zip(recall_names(len(shards)), shards, strict=True)
    ]
    writer = _deployment(WriterReplica, settings.writer, max_queued_requests=settings.writer.max_queued)
    model = embedder.bind(run, settings.embedder)
    data = run.recipe.data
    return _deployment(RunIngress, ReplicaSettings(cpus=0)).bind(
        RunInfo(len(shards), data.max_image_pixels, tuple(data.text_fields)),
        settings,
        model,
        writer.bind(run, settings.writer, model),
        *recalls,
    )


def build_gateway(args: Values) -> Application:
    """`args`: ServiceSettings. UserError for an unknown key, shares that are none, and a bad file of keys."""
    settings = build(ServiceSettings, args, "the service")
    Keys.load(settings.gateway.keys, settings.gateway.requests_per_s)
    # The gateway refuses by itself, in JSON: Serve lets more through than it takes.
    # New replicas are up before old ones stop: every change of the shares replaces them.
    # One that stops answers what it has begun. The other deployments keep Serve's 20 s: their calls are tried again.
    gateway = _deployment(
        Gateway,
        settings.gateway,
        max_ongoing_requests=2 * settings.gateway.max_ongoing,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=DRAINING_S + settings.gateway.write_timeout_s + 5,
    )
    return gateway.bind(settings.gateway, Shares(settings.weights, list(settings.shadows)))


def _deployment(target: type[Any], settings: ReplicaSettings, gpus: float = 0.0, **options: float) -> serve.Deployment:
    """`options`: Serve's own, over those that the settings give."""
    given: dict[str, Any] = {"max_ongoing_requests": settings.max_ongoing}
    if isinstance(settings, DeploymentSettings | EmbedderSettings):
        if settings.autoscaling is None:
            given["num_replicas"] = settings.replicas
        else:
            given["autoscaling_config"] = settings.autoscaling.options(settings.max_ongoing)
    deployment: serve.Deployment = serve.deployment(
        name=target.__name__.removesuffix("Replica").removesuffix("Ingress"),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": gpus},
        max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
        **{**given, **options},
    )(target)
    return deployment
