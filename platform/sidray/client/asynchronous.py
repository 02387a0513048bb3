"""The client of the service for asyncio: the methods of Client as coroutines.

async with AsyncClient("http://127.0.0.1:8000") as client:
    first, second = await asyncio.gather(client.search("cat"), client.search("dog"))
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from sidray.client import calls
from sidray.client.calls import Call, Events, Inputs, Items, Vectors
from sidray.client.errors import ClientError
from sidray.client.exchange import Endpoint, body_headers
from sidray.client.retries import FAILURES, Attempts
from sidray.client.rows import Picture
from sidray.serving.item_schemas import Deleted, EventsResponse, ItemsResponse, StoredItem
from sidray.serving.schemas import Index, ModelList, SearchResponse, SimilarResponse

T = TypeVar("T")


class AsyncClient:
    """For one event loop; any number of calls may be under way. What Client says holds here too, of each method of the
    same name. Lists and pictures are read and encoded in the loop's thread.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 30,
        retries: int = 4,
        write_timeout_s: float = 130,
    ) -> None:
        """Raises ValueError for a URL, key, timeout or number that cannot be."""
        self._endpoint = Endpoint(base_url, api_key, timeout_s, retries, write_timeout_s)
        self._http = httpx.AsyncClient(**self._endpoint.httpx_options())

    async def search(
        self,
        query: str | None = None,
        *,
        image: Picture | None = None,
        vector: ArrayLike | None = None,
        partition: str | Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        with_fields: Sequence[str] = (),
        min_table_version: int = 0,
    ) -> SearchResponse:
        """The k items nearest to a query, a picture, both together, or a `vector` [d] of the served model."""
        call = calls.search(query, image, vector, partition, k, exclude, with_fields, min_table_version)
        return await self._send(call)

    async def similar(
        self,
        item_ids: str | Sequence[str],
        *,
        partition: str | Sequence[str] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        recency: float = 1.0,
        with_fields: Sequence[str] = (),
        min_table_version: int = 0,
    ) -> SimilarResponse:
        """Neighbours of the items that a user saw last, the most recent first. `recency`: weight of each item relative
        to the one seen after it."""
        return await self._send(
            calls.similar(item_ids, partition, k, exclude_seen, recency, with_fields, min_table_version)
        )

    async def embed(self, inputs: Inputs, model: str | None = None, dimensions: int | None = None) -> Vectors:
        """float32 [n, d], in order. An input is a text, or {text?, image?}; longer lists go in several requests.

        Without `model` the service is asked for its own first."""
        name = await self._send(calls.served_model()) if model is None else model
        return calls.merged_vectors(
            [await self._send(call) for call in calls.embed(inputs, name, dimensions)], dimensions
        )

    async def put_items(self, items: Items) -> ItemsResponse:
        """Writes any number of items, in several requests where needed; durable when it returns.

        After an error the items before it may be written: put them again, which changes nothing."""
        return calls.merged_items([await self._send(call) for call in calls.put_items(items)])

    async def delete_item(self, item_id: str) -> Deleted:
        """ApiError 404 for an unknown item; also where a lost answer was the deletion's and the retry found none."""
        return await self._send(calls.delete_item(item_id))

    async def item(self, item_id: str) -> StoredItem:
        """ApiError 404 for an unknown item."""
        return await self._send(calls.item(item_id))

    async def item_image(self, item_id: str) -> bytes:
        """The encoded picture. ApiError 404 for an unknown item and for one without a picture."""
        return await self._send(calls.item_image(item_id))

    async def events(self, events: Events) -> EventsResponse:
        """Reports behaviour. `ts` of a mapping is a datetime with an offset, or ISO 8601."""
        return calls.merged_events([await self._send(call) for call in calls.events(events)])

    async def models(self) -> ModelList:
        return await self._send(calls.models())

    async def index(self) -> Index:
        return await self._send(calls.index())

    async def healthy(self) -> bool:
        """Whether the gateway answers, asked once."""
        call = calls.probe("/healthz")
        try:
            await self._send(call, self._endpoint.attempts(call, retries=0))
        except ClientError:
            return False
        return True

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Returns when model and index are loaded. Raises ConnectionFailed with the last reason after `timeout_s`."""
        call = calls.probe("/readyz")
        await self._send(call, self._endpoint.polling(call, timeout_s))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._endpoint.base_url!r})"

    async def _send(self, call: Call[T], attempts: Attempts | None = None) -> T:
        attempts = attempts or self._endpoint.attempts(call)
        while True:
            try:
                return await self._exchange(call, attempts)
            except FAILURES as error:
                pause = attempts.pause_after(error)
            await sleep(pause)

    async def _exchange(self, call: Call[T], attempts: Attempts) -> T:
        request = self._http.build_request(
            call.method,
            self._endpoint.url(call),
            content=call.body,
            headers=body_headers(call),
            extensions={"timeout": attempts.timeouts()},
        )
        async with asyncio.timeout(attempts.left_s()):
            response = await self._http.send(request)
        return self._endpoint.read(call, response.status_code, response.headers, response.content)
