"""A backend without Ray, models or an index, and the ASGI client on top of it."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from sidray.serving.gateway import create_api
from sidray.serving.messages import Embedded, Found, RecallQuery, Refusal
from sidray.serving.schemas import Index, IndexKey, Model
from sidray.serving.service import Limits, Service

MODEL_KEY = "m-1"
DIMENSION = 4
MAX_PIXELS = 10_000
INDEX = IndexKey(model_key=MODEL_KEY, generation="index-1", table_version=3)
HIT = {"item_id": "a1", "score": 0.5, "title": "Soup", "partition": "food", "fields": {"shop": "Noodle bar"}}


class FakeBackend:
    """Answers at once and remembers what it was asked; `before` runs first and may raise or wait."""

    def __init__(self) -> None:
        self.embedded: list[tuple[str, bytes | None]] = []
        self.recalled: list[RecallQuery] = []
        self.answer: Found | Refusal = Found([HIT], INDEX)
        self.before: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.model_key = MODEL_KEY

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        self.embedded.append((query, image))
        if self.before:
            await self.before()
        return Embedded(np.array([1, 0, 0, 0], np.float32), MODEL_KEY)

    async def recall(self, query: RecallQuery) -> Found | Refusal:
        self.recalled.append(query)
        return self.answer

    async def model(self) -> Model:
        if self.before:
            await self.before()
        return Model(id=self.model_key, dimension=DIMENSION, max_query_tokens=16, images=True)

    async def index(self) -> Index:
        return Index(**INDEX.model_dump(), dimension=DIMENSION, items=7, partitions=2, fields=["shop"], lag_seconds=0.0)


@functools.cache
def _api(max_in_flight: int) -> FastAPI:
    """Building the routes takes longer than a test."""
    return create_api(Service(FakeBackend(), Limits(MAX_PIXELS, 1.0)), max_in_flight)


def client_of(backend: FakeBackend, max_in_flight: int = 8, timeout_s: float = 5.0) -> httpx.AsyncClient:
    """An exception that leaves the application fails the test."""
    api = _api(max_in_flight)
    api.state.service = Service(backend, Limits(MAX_PIXELS, timeout_s))
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test")


def picture(width: int = 8, height: int = 8, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, format)
    return out.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
