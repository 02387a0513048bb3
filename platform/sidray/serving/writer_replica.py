"""The writer as a Serve deployment: a Writer whose embedder is a handle and whose folds are Ray tasks."""

from __future__ import annotations

import functools
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sidray.finished import RunFolder
from sidray.retrieval.collection import Collection
from sidray.serving.handles import InParts, encode_items
from sidray.serving.priority import give_way
from sidray.serving.settings import WriterSettings
from sidray.serving.writer import Writer


class WriterReplica(Writer):
    def __init__(self, run: RunFolder, settings: WriterSettings, embedder: DeploymentHandle[Any]) -> None:
        give_way()
        super().__init__(run, settings, functools.partial(encode_items, InParts(embedder)), _fold_elsewhere)


async def _fold_elsewhere(run: RunFolder) -> None:
    """A generation is built by a task, never inside a replica, on this machine: it asks for no CPU, since a small
    cluster is filled by the service and it gives way to searches, and so might go to a head that is kept free."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    await _fold.options(scheduling_strategy=here).remote(run)


@ray.remote(num_cpus=0)
def _fold(run: RunFolder) -> str:
    give_way()
    return Collection.of(run).fold().name
