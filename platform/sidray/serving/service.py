"""What a search is, apart from HTTP and from Serve: check, embed, recall, within a deadline.

answer = await Service(backend, Limits(max_pixels=50_000_000, timeout_s=10)).search(SearchRequest(query="soup"))
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from sidray.serving.messages import Embedded, Found, RecallQuery, Refusal, Vector
from sidray.serving.pictures import checked_picture
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import Hit, Index, Model, SearchRequest, SearchResponse, TookMs

MAX_QUERY_CHARACTERS = 131_072  # 8,192 tokens of 16 characters: refused before any tokenizer sees them
READY_S = 2.0
T = TypeVar("T")


class Backend(Protocol):
    """The deployments behind the gateway."""

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal: ...
    async def recall(self, query: RecallQuery) -> Found | Refusal: ...
    async def model(self) -> Model: ...
    async def index(self) -> Index: ...


@dataclass(frozen=True)
class Limits:
    max_pixels: int
    timeout_s: float


class Service:
    """The search behind POST /v1/search."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.backend = backend
        self.limits = limits
        self._decoders = ThreadPoolExecutor(2, "picture")  # bounds the memory of decoded pictures

    async def search(self, request: SearchRequest) -> SearchResponse:
        """ApiError for everything that the API refuses, 504 after the deadline."""
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await self._search(request)
        except TimeoutError as error:
            message = f"no answer within {self.limits.timeout_s:g} s"
            raise ApiError(Refusal(504, "deadline_exceeded", message)) from error

    async def described(self) -> tuple[Model, Index]:
        """What is served. ApiError 503 while the model or the index is not there, or they belong to two models."""
        try:
            async with asyncio.timeout(READY_S):
                model, index = await asyncio.gather(self.backend.model(), self.backend.index())
        except TimeoutError as error:
            raise ApiError(overloaded("the model or the index is not loaded yet")) from error
        if model.id != index.model_key:
            raise ApiError(overloaded(f"the model is {model.id}, the index is of {index.model_key}"))
        return model, index

    async def _search(self, request: SearchRequest) -> SearchResponse:
        started = time.perf_counter()
        vector, model_key = await self._vector(request)
        embedded = time.perf_counter()
        query = RecallQuery(
            vector, model_key, request.k, request.partitions, list(request.exclude), list(request.with_fields)
        )
        found = _accepted(await self.backend.recall(query))
        ended = time.perf_counter()
        took = TookMs(
            total=_ms(ended - started),
            embed=0.0 if request.vector is not None else _ms(embedded - started),
            recall=_ms(ended - embedded),
        )
        return SearchResponse(hits=[Hit(**hit) for hit in found.hits], index=found.index, took_ms=took)

    async def _vector(self, request: SearchRequest) -> tuple[Vector, str]:
        """The query vector and the key of the model that made it, "" for a client's own vector."""
        if request.vector is not None:
            return unit_vector(request.vector), ""
        if len(request.text) > MAX_QUERY_CHARACTERS:
            message = f"the query has more than {MAX_QUERY_CHARACTERS:,} characters"
            raise ApiError(Refusal(413, "query_too_long", message, "query"))
        image = None
        if request.image is not None:
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self._decoders, checked_picture, request.image, self.limits.max_pixels)
        embedded = _accepted(await self.backend.embed(request.text, image))
        return embedded.vector, embedded.model_key


def unit_vector(values: Sequence[float]) -> Vector:
    """[d] of unit length, in float64 first, so that neither huge nor tiny values are lost. ApiError 422 for zeros."""
    vector = np.asarray(values, np.float64)
    largest = np.abs(vector).max()
    if largest == 0:
        raise ApiError(Refusal(422, "zero_vector", "vector: all values are 0, which is no direction", "vector"))
    vector = vector / largest
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _accepted(answer: T | Refusal) -> T:
    if isinstance(answer, Refusal):
        raise ApiError(answer)
    return answer


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
