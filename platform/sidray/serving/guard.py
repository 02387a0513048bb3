"""The outermost layer of the gateway: admission, the limits on bodies, and the last net under unexpected errors.

Serve's own refusals are plain text and would pass by the API's error format, so the gateway refuses first.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidray.serving.auth import Keys
from sidray.serving.messages import Refusal
from sidray.serving.page import PATHS
from sidray.serving.problems import ApiError, overloaded, response
from sidray.serving.service import deadline

MAX_BODY_BYTES = 32 * 2**20
MAX_BODIES_BYTES = 256 * 2**20  # of all requests in flight
BODY_S = 30.0  # in which a body must arrive
_ITEMS = "/v1/items/"
_PUBLIC = {*PATHS, "/healthz", "/readyz", "/openapi.json"}
_LOGGER = logging.getLogger("ray.serve")
_TOO_LARGE = Refusal(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
_UNEXPECTED = Refusal(500, "internal_error", "an unexpected error; the service's log has its cause")


class Guard:
    """ASGI middleware. Requests count and need a key; only probes, the page and the API's description always pass.
    Writes and embeddings may be half of them: a writer that is being replaced holds up the ones, their length the
    others, and searches go on beside them."""

    def __init__(self, app: ASGIApp, max_in_flight: int, keys: Keys) -> None:
        self.app = app
        self.max_in_flight = max_in_flight
        self.keys = keys
        self.in_flight = 0
        self.max_slow = max(1, max_in_flight // 2)
        self.slow = 0
        self.body_bytes = 0  # received, of requests in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = _route_path(scope)
        scope, slow = _encoded_ids(scope, path), _is_slow(scope["method"], path)
        if path in _PUBLIC:
            await _guarded(self.app, scope, receive, send)
        elif self.in_flight >= self.max_in_flight or (slow and self.slow >= self.max_slow):
            await response(overloaded())(scope, receive, send)
        elif refusal := self.keys.refusal(Headers(scope=scope).get("authorization", "")):
            await response(refusal)(scope, receive, send)
        else:
            self.in_flight += 1
            self.slow += slow
            try:
                await _guarded(self._with_body, scope, receive, send)
            finally:
                self.in_flight -= 1
                self.slow -= slow

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A body that comes too slowly ends its connection; the rest of one that is too large is skipped unread."""
        try:
            async with self._whole(scope, receive) as received:
                await self.app(scope, received, send)
        except ApiError as error:
            headers = {"Connection": "close"} if error.refusal.status == 504 else {}
            await response(error.refusal, headers)(scope, receive, send)

    @asynccontextmanager
    async def _whole(self, scope: Scope, receive: Receive) -> AsyncIterator[Receive]:
        """`receive` with the whole body in one message. ApiError for one that is too large, whatever it declares, or
        too slow, and 503 while too many bytes of others are held."""
        if _declared(scope) > MAX_BODY_BYTES:
            raise ApiError(_TOO_LARGE)
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with deadline(BODY_S, "whole body"):
                while more:
                    message = await receive()
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    self.body_bytes += len(chunks[-1])
                    if size > MAX_BODY_BYTES:
                        raise ApiError(_TOO_LARGE)
                    if self.body_bytes > MAX_BODIES_BYTES:
                        raise ApiError(overloaded())
                    more = message.get("more_body", False)  # not of the message that the client has gone
            messages = [{**message, "body": b"".join(chunks)}]
            chunks.clear()

            async def received() -> Message:
                return messages.pop() if messages else await receive()

            yield received
        finally:
            self.body_bytes -= size


async def _guarded(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    started = False

    async def tracked(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, tracked)
    except Exception:
        if started:
            raise
        _LOGGER.exception("unexpected error in %s %s", scope["method"], scope["path"][:200])
        await response(_UNEXPECTED)(scope, receive, send)


def _route_path(scope: Scope) -> str:
    """The path below the prefix under which the application is served: Serve leaves it in the path, as ASGI has it."""
    path: str = scope["path"]
    route = path.removeprefix(scope.get("root_path", ""))
    return route if route.startswith("/") else path


def _encoded_ids(scope: Scope, path: str) -> Scope:
    """The path of an item as the client sent it: decoded, `a%2Fimage` would look like the picture of `a`."""
    raw = scope.get("raw_path")
    if not path.startswith(_ITEMS) or not raw:
        return scope
    item = raw.decode("latin-1").partition(_ITEMS)[2]
    return {**scope, "path": scope["path"].removesuffix(path) + _ITEMS + item}


def _is_slow(method: str, path: str) -> bool:
    """What has `write_timeout_s` to answer."""
    return method in ("PUT", "DELETE") or path in ("/v1/events", "/v1/embeddings")


def _declared(scope: Scope) -> int:
    """The Content-Length, 0 where there is none to read."""
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
