"""The Serve application of a finished run: gateway -> embedder, recall, writer.

serve.run(build_app({"run": "sidray-runs/runs/smgr-1a2b", "embedder": {"replicas": 2}}), name="sidray")
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from sidray.config import Values, build
from sidray.finished import RunFolder
from sidray.retrieval.collection import Collection
from sidray.serving.auth import Keys
from sidray.serving.embedder import Embedder
from sidray.serving.gateway import Gateway
from sidray.serving.recall import Recall
from sidray.serving.settings import DeploymentSettings, EmbedderSettings, ReplicaSettings, ServiceSettings
from sidray.serving.writer_replica import WriterReplica

_NEEDED = ("text-weights", "pretrained-towers", "table", "index")
CONSTRUCTOR_ATTEMPTS = 3  # a replica that cannot load will not load at the twentieth attempt


def build_app(args: Values) -> Application:
    """`args`: ServiceSettings. UserError for an unknown key, and for a run that is none or is not finished."""
    settings = build(ServiceSettings, args, "of the service")
    run = RunFolder.open(settings.run, settings.variant)
    for role in _NEEDED:
        run.manifest(role)
    Keys.load(settings.gateway.keys, settings.gateway.requests_per_s)
    Collection.of(run).check()
    queue, gpus = settings.embedder.max_queued, settings.embedder.gpus
    embedder = _deployment(Embedder, settings.embedder, max_queued_requests=queue, gpus=gpus)
    queue, gpus = settings.recall.max_queued, settings.recall.gpus
    recall = _deployment(Recall, settings.recall, max_queued_requests=queue, gpus=gpus)
    # The gateway refuses by itself, in JSON: Serve lets more through than it takes.
    gateway = _deployment(Gateway, settings.gateway, max_ongoing_requests=2 * settings.gateway.max_ongoing)
    writer = _deployment(WriterReplica, settings.writer, max_queued_requests=settings.writer.max_queued)
    model = embedder.bind(run, settings.embedder)
    return gateway.bind(
        model,
        recall.bind(run, settings.recall),
        writer.bind(run, settings.writer, model),
        settings.gateway,
        run.recipe.data.max_image_pixels,
        run.recipe.data.text_fields,
    )


def _deployment(target: type[Any], settings: ReplicaSettings, gpus: float = 0.0, **options: int) -> serve.Deployment:
    """`options`: Serve's own, over those that the settings give."""
    given: dict[str, Any] = {"max_ongoing_requests": settings.max_ongoing}
    if isinstance(settings, DeploymentSettings | EmbedderSettings):
        if settings.autoscaling is None:
            given["num_replicas"] = settings.replicas
        else:
            given["autoscaling_config"] = settings.autoscaling.options()
    deployment: serve.Deployment = serve.deployment(
        name=target.__name__.removesuffix("Replica"),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": gpus},
        max_constructor_retry_count=CONSTRUCTOR_ATTEMPTS,
        **{**given, **options},
    )(target)
    return deployment
