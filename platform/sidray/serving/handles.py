"""The gateway's backend on Serve: calls to embedder, recall and writer, retried once when a replica dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from sidray.serving.messages import (
    Embedded,
    EncodedItems,
    Found,
    NewItem,
    RecallQuery,
    Refusal,
    RunInfo,
    SimilarFound,
    SimilarQuery,
)
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import Index, Model

ATTEMPTS = 2  # every call may run twice: reads change nothing, a repeated write writes the same
INPUTS_PER_CALL = 32  # of a list: its parts share out over the replicas, and none holds one up for long
T = TypeVar("T")


class HandleBackend:
    """ApiError 503 when a deployment's queue is full, or it is not there."""

    def __init__(
        self,
        run: DeploymentHandle[Any],
        embedder: DeploymentHandle[Any],
        recall: DeploymentHandle[Any],
        writer: DeploymentHandle[Any],
    ) -> None:
        self._run = run
        self._embedder = embedder
        self._recall = recall
        self._writer = writer

    @classmethod
    def of(cls, application: str) -> HandleBackend:
        """The deployments of a run's application, as app.py names them."""
        names = ("Run", "Embedder", "Recall", "Writer")
        return cls(*(serve.get_deployment_handle(name, application) for name in names))

    async def info(self) -> RunInfo:
        answer: RunInfo = await call(self._run.info)
        return answer

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        answer: Embedded | Refusal = await call(self._embedder.embed, query, image)
        return answer

    async def embed_all(self, inputs: list[tuple[str, bytes | None]]) -> list[Embedded | Refusal]:
        parts = await asyncio.gather(*(call(self._embedder.embed_all, part) for part in _parts(inputs)))
        return [answer for part in parts for answer in part]

    async def recall(self, query: RecallQuery) -> Found | Refusal:
        answer: Found | Refusal = await call(self._recall.search, query)
        return answer

    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal:
        answer: SimilarFound | Refusal = await call(self._recall.similar, query)
        return answer

    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal:
        answer: tuple[dict[str, Any], int] | Refusal = await call(self._recall.item, item_id)
        return answer

    async def thumbnail(self, item_id: str) -> bytes | Refusal:
        answer: bytes | Refusal = await call(self._recall.thumbnail, item_id)
        return answer

    async def put(self, items: list[NewItem]) -> int | Refusal:
        answer: int | Refusal = await call(self._writer.put, items)
        return answer

    async def delete(self, item_id: str) -> int | Refusal:
        answer: int | Refusal = await call(self._writer.delete, item_id)
        return answer

    async def append_events(self, rows: list[dict[str, Any]]) -> int | Refusal:
        answer: int | Refusal = await call(self._writer.append_events, rows)
        return answer

    async def model(self) -> Model:
        answer: Model = await call(self._embedder.describe)
        return answer

    async def index(self) -> Index:
        answer: Index = await call(self._recall.describe)
        return answer


async def encode_items(embedder: DeploymentHandle[Any], items: list[NewItem]) -> EncodedItems:
    """The writer's way to the embedder. ApiError 503 as above."""
    parts: list[EncodedItems] = await asyncio.gather(*(call(embedder.encode_items, part) for part in _parts(items)))
    vectors = np.concatenate([part.vectors for part in parts])
    return EncodedItems(vectors, [sids for part in parts for sids in part.sids], parts[0].model_key)


async def call(method: Any, *args: object) -> Any:
    for _ in range(ATTEMPTS):
        try:
            return await method.remote(*args)
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise ApiError(overloaded()) from error
        except (RayActorError, ReplicaUnavailableError):
            continue  # the replica died; Serve sends the next call to another
    raise ApiError(overloaded("the replicas are being replaced; try again"))


def _parts(values: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(values), INPUTS_PER_CALL):
        yield values[start : start + INPUTS_PER_CALL]
