"""What the service does, apart from HTTP and from Serve: check, embed, recall or write, within a deadline.

service = Service(backend, GatewaySettings(timeout_s=10))
answer, times = await service.search(SearchRequest(query="soup"))
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from sidray.serving.messages import (
    Embedded,
    Found,
    NewItem,
    RecallQuery,
    Refusal,
    RunInfo,
    SimilarFound,
    SimilarQuery,
    Times,
    Vector,
)
from sidray.serving.pictures import checked_picture
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import (
    Hit,
    Index,
    Model,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SimilarResponse,
    TookMs,
)
from sidray.serving.settings import GatewaySettings

MAX_TEXT_CHARACTERS = 131_072  # 8,192 tokens of 16 characters: refused before any tokenizer sees them
READY_S = 2.0
T = TypeVar("T")


class Recalling(Protocol):
    """What the gateway asks of a run's recall."""

    async def search(self, query: RecallQuery) -> Found | Refusal: ...
    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal: ...
    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal: ...
    async def thumbnail(self, item_id: str) -> bytes | Refusal: ...
    async def describe(self) -> Index: ...


class Backend(Protocol):
    """The deployments behind the gateway."""

    @property
    def info(self) -> RunInfo: ...
    @property
    def recall(self) -> Recalling: ...

    async def refresh(self) -> None: ...
    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal: ...
    async def embed_all(self, inputs: list[tuple[str, bytes | None]]) -> list[Embedded | Refusal]: ...
    async def put(self, items: list[NewItem]) -> int | Refusal: ...
    async def delete(self, item_id: str) -> int | Refusal: ...
    async def append_events(self, rows: list[dict[str, Any]]) -> int | Refusal: ...
    async def model(self) -> Model: ...


class Service:
    """The searches. items.py and embeddings.py build on it."""

    def __init__(self, backend: Backend, settings: GatewaySettings) -> None:
        self.backend = backend
        self.settings = settings
        self._decoders = ThreadPoolExecutor(2, "picture")  # bounds the memory of decoded pictures

    async def search(self, request: SearchRequest) -> tuple[SearchResponse, Times]:
        """ApiError for everything that the API refuses, 504 after the deadline."""
        async with deadline(self.settings.timeout_s):
            started = time.perf_counter()
            vector, model_key, times = await self._vector(request)
            embedded = time.perf_counter()
            query = RecallQuery(
                vector,
                model_key,
                request.k,
                request.partitions,
                list(request.exclude),
                list(request.with_fields),
                request.min_table_version,
            )
            found = accepted(await self.backend.recall.search(query))
            took = _took(started, started if request.vector is not None else embedded, embedded)
            return SearchResponse(hits=_hits(found), index=found.index, took_ms=took), times

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """As `search`, from the items that a user saw."""
        async with deadline(self.settings.timeout_s):
            started = time.perf_counter()
            query = SimilarQuery(
                list(dict.fromkeys(request.item_ids)),
                request.k,
                request.partitions,
                request.exclude_seen,
                list(request.with_fields),
                request.min_table_version,
                request.recency,
            )
            found = accepted(await self.backend.recall.similar(query))
            took = _took(started, started, started)
            return SimilarResponse(hits=_hits(found), index=found.index, took_ms=took, unknown=found.unknown)

    async def described(self) -> tuple[Model, Index]:
        """What is served. ApiError 503 while the model or the index is not there, or they belong to two models."""
        try:
            async with asyncio.timeout(READY_S):
                model, index = await asyncio.gather(self.backend.model(), self.backend.recall.describe())
        except TimeoutError as error:
            raise ApiError(overloaded("the model or the index is not loaded yet")) from error
        if model.id != index.model_key:
            raise ApiError(overloaded(f"the model is {model.id}, the index is of {index.model_key}"))
        return model, index

    async def picture(self, text: str) -> bytes:
        """The checked bytes of a client's picture."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, checked_picture, text, self.backend.info.max_pixels)

    async def _vector(self, request: SearchRequest) -> tuple[Vector, str, Times]:
        """The query vector, the key of the model that made it ("" for a client's own), and how long that took."""
        if request.vector is not None:
            return unit_vector(request.vector), "", Times()
        check_length(request.text, "query")
        image = None if request.image is None else await self.picture(request.image)
        embedded = accepted(await self.backend.embed(request.text, image))
        return embedded.vector, embedded.model_key, embedded.times


@asynccontextmanager
async def deadline(seconds: float, what: str = "answer") -> AsyncIterator[None]:
    """ApiError 504 when the block takes longer to have `what`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ApiError(Refusal(504, "deadline_exceeded", f"no {what} within {seconds:g} s")) from error


def accepted(answer: T | Refusal) -> T:
    """ApiError for a refusal."""
    if isinstance(answer, Refusal):
        raise ApiError(answer)
    return answer


def check_length(text: str, param: str) -> None:
    """ApiError 413 for a text that no tokenizer should see."""
    if len(text) > MAX_TEXT_CHARACTERS:
        message = f"{param} has more than {MAX_TEXT_CHARACTERS:,} characters"
        raise ApiError(Refusal(413, "query_too_long", message, param))


def unit_vector(values: Sequence[float]) -> Vector:
    """[d] of unit length, in float64 first, so that neither huge nor tiny values are lost. ApiError 422 for zeros."""
    vector = np.asarray(values, np.float64)
    largest = np.abs(vector).max()
    if largest == 0:
        raise ApiError(Refusal(422, "zero_vector", "vector: all values are 0, which is no direction", "vector"))
    vector = vector / largest
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _hits(found: Found) -> list[Hit]:
    return [Hit(**hit) for hit in found.hits]


def _took(started: float, embedded: float, recalling: float) -> TookMs:
    """From when a request started, its vector was there, and recall began, until now."""
    now = time.perf_counter()
    return TookMs(total=_ms(now - started), embed=_ms(embedded - started), recall=_ms(now - recalling))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
