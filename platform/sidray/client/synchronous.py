"""The client of the service for threads and scripts: see sidray.client for an example."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep
from types import TracebackType
from typing import Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from sidray.client import calls
from sidray.client.calls import Call, Events, Inputs, Items, Vectors
from sidray.client.errors import ClientError
from sidray.client.exchange import Endpoint, body_headers, slices
from sidray.client.retries import FAILURES, Attempts
from sidray.client.rows import Picture
from sidray.serving.item_schemas import Deleted, EventsResponse, ItemsResponse, StoredItem
from sidray.serving.schemas import Index, ModelList, SearchResponse, SimilarResponse

T = TypeVar("T")


class Client:
    """May be shared by threads; keeps its connections open until `close` or the end of its `with`.

    `timeout_s` bounds each request with all its retries, `write_timeout_s` each of put_items, delete_item, events and
    embed. A silent connection is given up after half of it, so each should be more than twice the gateway's own setting
    of that name: else work that takes longer is begun again and never answered. All methods raise ApiError for a
    refusal and ConnectionFailed where no answer came. Pictures are bytes, a Path, or base64 or a data URL as str.
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
        self._http = httpx.Client(**self._endpoint.httpx_options())

    def search(
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
        return self._send(call)

    def similar(
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
        return self._send(calls.similar(item_ids, partition, k, exclude_seen, recency, with_fields, min_table_version))

    def embed(self, inputs: Inputs, model: str | None = None, dimensions: int | None = None) -> Vectors:
        """float32 [n, d], in order. An input is a text, or {text?, image?}; longer lists go in several requests.

        Without `model` the service is asked for its own first."""
        name = self._send(calls.served_model()) if model is None else model
        return calls.merged_vectors([self._send(call) for call in calls.embed(inputs, name, dimensions)], dimensions)

    def put_items(self, items: Items) -> ItemsResponse:
        """Writes any number of items, in several requests where needed; durable when it returns.

        After an error the items before it may be written: put them again, which changes nothing."""
        return calls.merged_items([self._send(call) for call in calls.put_items(items)])

    def delete_item(self, item_id: str) -> Deleted:
        """ApiError 404 for an unknown item; also where a lost answer was the deletion's and the retry found none."""
        return self._send(calls.delete_item(item_id))

    def item(self, item_id: str) -> StoredItem:
        """ApiError 404 for an unknown item."""
        return self._send(calls.item(item_id))

    def item_image(self, item_id: str) -> bytes:
        """The encoded picture. ApiError 404 for an unknown item and for one without a picture."""
        return self._send(calls.item_image(item_id))

    def events(self, events: Events) -> EventsResponse:
        """Reports behaviour. `ts` of a mapping is a datetime with an offset, or ISO 8601."""
        return calls.merged_events([self._send(call) for call in calls.events(events)])

    def models(self) -> ModelList:
        return self._send(calls.models())

    def index(self) -> Index:
        return self._send(calls.index())

    def healthy(self) -> bool:
        """Whether the gateway answers, asked once."""
        call = calls.probe("/healthz")
        try:
            self._send(call, self._endpoint.attempts(call, retries=0))
        except ClientError:
            return False
        return True

    def wait_until_ready(self, timeout_s: float) -> None:
        """Returns when model and index are loaded. Raises ConnectionFailed with the last reason after `timeout_s`."""
        call = calls.probe("/readyz")
        self._send(call, self._endpoint.polling(call, timeout_s))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._endpoint.base_url!r})"

    def _send(self, call: Call[T], attempts: Attempts | None = None) -> T:
        attempts = attempts or self._endpoint.attempts(call)
        while True:
            try:
                return self._exchange(call, attempts)
            except FAILURES as error:
                pause = attempts.pause_after(error)
            sleep(pause)

    def _exchange(self, call: Call[T], attempts: Attempts) -> T:
        """httpx limits each network operation; in_time ends a body that trickles either way."""
        request = self._http.build_request(
            call.method,
            self._endpoint.url(call),
            content=None if call.body is None else attempts.in_time(slices(call.body)),
            headers=body_headers(call),
            extensions={"timeout": attempts.timeouts()},
        )
        response = self._http.send(request, stream=True)
        try:
            body = b"".join(attempts.in_time(response.iter_bytes()))
        finally:
            response.close()
        return self._endpoint.read(call, response.status_code, response.headers, body)
