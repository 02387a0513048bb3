"""Real servers on free ports: the service's routes with answers that a test scripts, and sockets that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sidray.serving.embedding_schemas import Embedding, EmbeddingsRequest, EmbeddingsResponse, Usage
from sidray.serving.item_schemas import (
    Deleted,
    EventsRequest,
    EventsResponse,
    ItemsRequest,
    ItemsResponse,
    Rejected,
    StoredItem,
)
from sidray.serving.schemas import (
    Hit,
    Index,
    IndexKey,
    Model,
    ModelList,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SimilarResponse,
    Status,
    TookMs,
)

KEY = IndexKey(run="smgr-1", model_key="m-1", generation="index-1", table_version=3)
TOOK = TookMs(total=1.0, embed=0.5, recall=0.5)


@dataclass
class Seen:
    method: str
    raw_path: bytes
    headers: dict[str, str]
    body: bytes
    port: int  # of the client: tells connections apart

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Fault:
    """Answered in place of the route's answer, after `delay_s`."""

    status: int
    body: bytes = b'{"error": {"type": "t", "code": "c", "message": "m", "param": null}}'
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    delay_s: float = 0.0


class Scripted:
    """Answers as the routes do, after the faults of `script`; `seen` are the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.seen: list[Seen] = []
        self.script: deque[Fault] = deque()
        self.table_versions: deque[int] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: a router would not let every item_id through."""
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        seen = Seen(request.method, request.scope["raw_path"], dict(request.headers), body, request.scope["client"][1])
        self.seen.append(seen)
        if self.script:
            fault = self.script.popleft()
            await asyncio.sleep(fault.delay_s)
            return Response(fault.body, fault.status, fault.headers)
        if seen.raw_path.count(b"/") == 4 and seen.raw_path.endswith(b"/image"):
            return Response(b"\x89PNG", media_type="image/png")
        answer = self._routed(seen)
        status = 202 if isinstance(answer, EventsResponse) else 200
        return Response(answer.model_dump_json(), status, media_type="application/json")

    def _routed(self, seen: Seen) -> Any:
        """Bodies are read as strictly as the service does."""
        model = Model(id="m-1", run="smgr-1", dimension=2, max_query_tokens=16, images=True)
        served = {"dimension": 2, "items": 7, "partitions": 2, "fields": ["shop"], "delta": 0, "lag_seconds": 0.0}
        index = Index(**KEY.model_dump(), **served)
        routes: dict[tuple[str, str], Callable[[bytes], Any]] = {
            ("POST", "/v1/search"): _search,
            ("POST", "/v1/similar"): _similar,
            ("POST", "/v1/embeddings"): embeddings,
            ("POST", "/v1/events"): lambda body: EventsResponse(
                accepted=len(EventsRequest.model_validate_json(body).events)
            ),
            ("PUT", "/v1/items"): self._put,
            ("GET", "/v1/models"): lambda body: ModelList(data=[model]),
            ("GET", "/v1/index"): lambda body: index,
            ("GET", "/healthz"): lambda body: Status(status="ok"),
            ("GET", "/readyz"): lambda body: Status(status="ready"),
        }
        path = seen.raw_path.decode().removeprefix("/behind/a%20proxy")
        if (seen.method, path) in routes:
            return routes[seen.method, path](seen.body)
        prefix, _, segment = path.rpartition("/")
        assert prefix == "/v1/items", path
        item_id = unquote_to_bytes(segment).decode()
        if seen.method == "DELETE":
            return Deleted(item_id=item_id, table_version=4)
        return StoredItem(item_id=item_id, title="t", partition="", fields={}, table_version=3)

    def _put(self, body: bytes) -> ItemsResponse:
        """Rejects items without a title."""
        items = ItemsRequest.model_validate_json(body).items
        rejected = [Rejected(item_id=item.item_id, reason="no title") for item in items if not item.title]
        version = self.table_versions.popleft() if self.table_versions else 4
        return ItemsResponse(accepted=len(items) - len(rejected), rejected=rejected, table_version=version)


def _hit(title: str) -> Hit:
    return Hit(item_id="a1", score=0.5, title=title, partition="", fields={})


def _search(body: bytes) -> SearchResponse:
    return SearchResponse(hits=[_hit(SearchRequest.model_validate_json(body).text)], index=KEY, took_ms=TOOK)


def _similar(body: bytes) -> SimilarResponse:
    item_ids = SimilarRequest.model_validate_json(body).item_ids
    return SimilarResponse(hits=[_hit(item_ids[0])], index=KEY, took_ms=TOOK, unknown=item_ids[1:])


def embeddings(body: bytes) -> EmbeddingsResponse:
    """The vector of "7" is [7, 0.1], and of an image alone [-1, 0.1]; the last input comes first."""
    request = EmbeddingsRequest.model_validate_json(body)
    rows = []
    for index, given in reversed(list(enumerate(request.inputs))):
        vector = np.array([float(given.text or -1), 0.1], "<f4")
        coded = base64.b64encode(vector.tobytes()).decode()
        rows.append(Embedding(index=index, embedding=coded if request.encoding_format == "base64" else vector.tolist()))
    return EmbeddingsResponse(data=rows, model=request.model, usage=Usage(prompt_tokens=3, total_tokens=3))


@contextmanager
def under_uvicorn(app: ASGIApp) -> Iterator[str]:
    """Its URL, for the block; the server runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def serving(scripted: Scripted) -> Iterator[Scripted]:
    with under_uvicorn(scripted) as scripted.url:
        yield scripted


@contextmanager
def raw_server(*serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A URL whose n-th connection goes to the n-th function; the last one has all further ones, too."""

    def accept() -> None:
        with suppress(OSError):  # the listener was closed
            for number in range(100):
                connection, _ = listener.accept()
                threading.Thread(
                    target=_handled, args=(connection, serve[min(number, len(serve) - 1)]), daemon=True
                ).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        threading.Thread(target=accept, daemon=True).start()
        yield url_of(listener)
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept


def _handled(connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    with connection, suppress(OSError):
        serve(connection)


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
