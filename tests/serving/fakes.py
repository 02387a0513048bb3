"""A backend without Ray, models or an index, and the ASGI client on top of it."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from sidray.serving.auth import Keys
from sidray.serving.gateway import create_api
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
)
from sidray.serving.schemas import ErrorBody, Index, IndexKey, Model
from sidray.serving.settings import GatewaySettings
from sidray.serving.traffic import Shares, Traffic

MODEL_KEY = "m-1"
DIMENSION = 4
MAX_PIXELS = 10_000
INDEX = IndexKey(run="m", model_key=MODEL_KEY, generation="index-1", table_version=3)
HIT = {"item_id": "a1", "score": 0.5, "title": "Soup", "partition": "food", "fields": {"shop": "Noodle bar"}}


class FakeBackend:
    """Answers at once and remembers what it was asked; `before` runs first and may raise or wait."""

    def __init__(self) -> None:
        self.info = RunInfo(1, MAX_PIXELS, ("shop",))
        self.recall = self
        self.embedded: list[tuple[str, bytes | None]] = []
        self.recalled: list[RecallQuery] = []
        self.liked: list[SimilarQuery] = []
        self.items: dict[str, NewItem] = {}
        self.events: list[dict[str, Any]] = []
        self.answer: Found | Refusal = Found([HIT], INDEX)
        self.written: int | Refusal = 4  # what a write answers
        self.before: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.model_key = MODEL_KEY

    async def refresh(self) -> None:
        if self.before:
            await self.before()

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        self.embedded.append((query, image))
        if self.before:
            await self.before()
        return Embedded(np.array([1, 0, 0, 0], np.float32), MODEL_KEY, len(query), Times(1.0, 2.0, 3.0))

    async def embed_all(self, inputs: list[tuple[str, bytes | None]]) -> list[Embedded | Refusal]:
        return [await self.embed(text, image) for text, image in inputs]

    async def search(self, query: RecallQuery) -> Found | Refusal:
        self.recalled.append(query)
        return self.answer

    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal:
        self.liked.append(query)
        return self.answer if isinstance(self.answer, Refusal) else SimilarFound([HIT], INDEX, ["z9"])

    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal:
        item = self.items.get(item_id)
        if item is None:
            return Refusal(404, "unknown_item", f"no item is called {item_id!r}", "item_id")
        return {name: getattr(item, name) for name in ("item_id", "title", "partition", "fields")}, 4

    async def thumbnail(self, item_id: str) -> bytes | Refusal:
        item = self.items.get(item_id)
        if item is None or item.image is None:
            return Refusal(404, "no_picture", f"item {item_id!r} has no picture", "item_id")
        return item.image

    async def put(self, items: list[NewItem]) -> int | Refusal:
        if self.before:
            await self.before()
        self.items |= {item.item_id: item for item in items}
        return self.written

    async def delete(self, item_id: str) -> int | Refusal:
        found = self.items.pop(item_id, None)
        return self.written if found else Refusal(404, "unknown_item", "no such item", "item_id")

    async def append_events(self, rows: list[dict[str, Any]]) -> int | Refusal:
        self.events += rows
        return len(rows)

    async def model(self) -> Model:
        if self.before:
            await self.before()
        return Model(id=self.model_key, run="m", dimension=DIMENSION, max_query_tokens=16, images=True)

    async def describe(self) -> Index:
        served = {"dimension": DIMENSION, "items": 7, "partitions": 2, "fields": ["shop"]}
        return Index(**INDEX.model_dump(), **served, delta=0, lag_seconds=0.0)


@functools.cache
def _api(max_in_flight: int, keys: Keys) -> FastAPI:
    """Building the routes takes longer than a test."""
    return api_of(FakeBackend(), max_in_flight, keys)


async def _scrape() -> str:
    return "up 1\n"


def traffic_of(backend: FakeBackend, timeout_s: float = 1.0) -> Traffic:
    """All of it goes to one run, "m"."""
    settings = GatewaySettings(timeout_s=timeout_s, write_timeout_s=timeout_s)

    async def connect(name: str) -> FakeBackend:
        return backend

    return Traffic(connect, settings, Shares({"m": 1.0}))


def api_of(backend: FakeBackend, max_in_flight: int, keys: Keys) -> FastAPI:
    return create_api(traffic_of(backend), max_in_flight, keys, _scrape)


OPEN = Keys({})


def client_of(
    backend: FakeBackend, max_in_flight: int = 8, timeout_s: float = 5.0, keys: Keys = OPEN, prefix: str = ""
) -> httpx.AsyncClient:
    """An exception that leaves the application fails the test. `prefix`: under which Serve has it."""
    api = _api(max_in_flight, keys)
    api.state.traffic = traffic_of(backend, timeout_s)
    return httpx.AsyncClient(transport=httpx.ASGITransport(api, root_path=prefix), base_url=f"http://test{prefix}")


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(answer: httpx.Response, status: int, code: str, param: str | None) -> None:
    """The answer is exactly this error, in the API's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = ErrorBody.model_validate(answer.json()).error
    assert (error.code, error.param) == (code, param)
    assert set(answer.json()) == {"error"}
    assert error.message
    assert "Traceback" not in answer.text


async def search(body: Any, backend: FakeBackend | None = None) -> httpx.Response:
    """`body`: JSON values, or text that is sent as it is (NaN and half surrogates have no other way)."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    async with client_of(backend or FakeBackend()) as client:
        return await client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})


async def waits(event: asyncio.Event) -> None:
    await event.wait()
