"""The gateway's backend on Serve: calls to embedder, recall and writer, retried once when a replica dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
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
    Vector,
)
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import Index, Model
from sidray.serving.shards import Shards

ATTEMPTS = 2  # every call may run twice: reads change nothing, a repeated write writes the same
INPUTS_PER_CALL = 32  # of a list: its parts share out over the replicas, and none holds one up for long
PARTS = 8  # of lists on their way at once, from a process to an embedder: a search queues behind no more of them
T = TypeVar("T")


def recall_names(shards: int) -> list[str]:
    """Of the deployments that hold the shards of a run's table."""
    return ["Recall"] if shards == 1 else [f"Recall-{number}" for number in range(shards)]


class RecallHandle:
    """Recall (recall.py) through a handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def search(self, query: RecallQuery) -> Found | Refusal:
        answer: Found | Refusal = await call(self._handle.search, query)
        return answer

    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal:
        answer: SimilarFound | Refusal = await call(self._handle.similar, query)
        return answer

    async def vectors(self, item_ids: list[str], min_table_version: int) -> dict[str, Vector] | Refusal:
        answer: dict[str, Vector] | Refusal = await call(self._handle.vectors, item_ids, min_table_version)
        return answer

    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal:
        answer: tuple[dict[str, Any], int] | Refusal = await call(self._handle.item, item_id)
        return answer

    async def thumbnail(self, item_id: str) -> bytes | Refusal:
        answer: bytes | Refusal = await call(self._handle.thumbnail, item_id)
        return answer

    async def describe(self) -> Index:
        answer: Index = await call(self._handle.describe)
        return answer


class HandleBackend:
    """ApiError 503 when a deployment's queue is full, or it is not there."""

    def __init__(self, info: RunInfo, handle: Callable[[str], DeploymentHandle[Any]]) -> None:
        self._handle = handle
        self._run, self._embedder, self._writer = handle("Run"), handle("Embedder"), handle("Writer")
        self._bulk = InParts(self._embedder)
        self._be(info)

    @classmethod
    async def of(cls, application: str) -> HandleBackend:
        """The deployments of a run's application, as app.py names them."""

        def handle(name: str) -> DeploymentHandle[Any]:
            return serve.get_deployment_handle(name, application)

        return cls(await call(handle("Run").info), handle)

    async def refresh(self) -> None:
        """The application may be of another run, or have another number of shards, than when it was asked last."""
        info = await call(self._run.info)
        if info != self.info:
            self._be(info)

    def _be(self, info: RunInfo) -> None:
        self.info = info
        self.recall = Shards([RecallHandle(self._handle(name)) for name in recall_names(info.shards)])

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        answer: Embedded | Refusal = await call(self._embedder.embed, query, image)
        return answer

    async def embed_all(self, inputs: list[tuple[str, bytes | None]]) -> list[Embedded | Refusal]:
        parts: list[list[Embedded | Refusal]] = await self._bulk.call("embed_all", inputs)
        return [answer for part in parts for answer in part]

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


class InParts:
    """Long lists for an embedder, PARTS of them at a time: the others wait here, not before searches in its queue."""

    def __init__(self, embedder: DeploymentHandle[Any]) -> None:
        self._embedder = embedder
        self._free = asyncio.Semaphore(PARTS)

    async def call(self, method: str, values: list[Any]) -> list[Any]:
        """The answers to all parts, in order. ApiError 503 as above."""
        return await asyncio.gather(*(self._call(method, part) for part in _parts(values)))

    async def _call(self, method: str, part: list[Any]) -> Any:
        async with self._free:
            return await call(getattr(self._embedder, method), part)


async def encode_items(embedder: InParts, items: list[NewItem]) -> EncodedItems:
    """The writer's way to the embedder. ApiError 503 as above."""
    parts: list[EncodedItems] = await embedder.call("encode_items", items)
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
