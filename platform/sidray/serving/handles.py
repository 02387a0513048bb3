"""The gateway's backend on Serve: calls to the embedder and recall deployments, retried once when a replica dies."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from sidray.serving.messages import Embedded, Found, RecallQuery, Refusal
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import Index, Model

ATTEMPTS = 2  # a search changes nothing, so it may run twice


class HandleBackend:
    """ApiError 503 when a deployment's queue is full, or it is not there."""

    def __init__(self, embedder: DeploymentHandle[Any], recall: DeploymentHandle[Any]) -> None:
        self._embedder = embedder
        self._recall = recall

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        answer: Embedded | Refusal = await _call(self._embedder.embed, query, image)
        return answer

    async def recall(self, query: RecallQuery) -> Found | Refusal:
        answer: Found | Refusal = await _call(self._recall.search, query)
        return answer

    async def model(self) -> Model:
        answer: Model = await _call(self._embedder.describe)
        return answer

    async def index(self) -> Index:
        answer: Index = await _call(self._recall.describe)
        return answer


async def _call(method: Any, *args: object) -> Any:
    for _ in range(ATTEMPTS):
        try:
            return await method.remote(*args)
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise ApiError(overloaded()) from error
        except (RayActorError, ReplicaUnavailableError):
            continue  # the replica died; Serve sends the next call to another
    raise ApiError(overloaded("the replicas are being replaced; try again"))
