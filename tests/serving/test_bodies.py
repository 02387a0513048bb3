"""Bodies of requests: how large one may be, how long it may take, and how much all of them may hold at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from sidray.serving import guard
from sidray.serving.guard import MAX_BODY_BYTES
from tests.client.servers import under_uvicorn
from tests.serving.fakes import OPEN, FakeBackend, api_of, client_of, refused, search, waits

BOTH = {"query": "soup"}


async def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    async with client_of(FakeBackend()) as client:
        headers = {"Content-Type": "application/json", "Content-Length": str(MAX_BODY_BYTES + 1)}
        answer = await client.post("/v1/search", content=b"{", headers=headers)
    refused(answer, 413, "body_too_large", None)


async def test_an_undeclared_body_is_counted() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent <= 3 * MAX_BODY_BYTES:
            sent += 2**20
            yield b" " * 2**20

    async with client_of(FakeBackend()) as client:
        answer = await client.post("/v1/search", content=endless(), headers={"Content-Type": "application/json"})
    refused(answer, 413, "body_too_large", None)
    assert sent < MAX_BODY_BYTES + 3 * 2**20


async def test_a_body_at_the_limit_is_read() -> None:
    body = '{"query": "soup"}'
    answer = await search(body + " " * (MAX_BODY_BYTES - len(body)))
    assert answer.status_code == 200


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async with client_of(FakeBackend(), max_in_flight=1) as client:
        async with asyncio.timeout(5):
            answer = await client.post("/v1/search", content=trickle(), headers={"Content-Type": "application/json"})
        refused(answer, 504, "deadline_exceeded", None)
        assert (await client.post("/v1/search", json=BOTH)).status_code == 200


def test_the_connection_of_a_body_that_stops_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    head = b"POST /v1/search HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with under_uvicorn(api_of(FakeBackend(), 1, OPEN)) as url:
        connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5)
        with connection:
            connection.sendall(head)
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"deadline_exceeded"' in answer


async def test_bodies_in_flight_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODIES_BYTES", 1500)
    backend, release = FakeBackend(), asyncio.Event()
    backend.before = lambda: waits(release)
    large = {"query": "x" * 1000}
    async with client_of(backend) as client:
        first = asyncio.create_task(client.post("/v1/search", json=large))
        while not backend.embedded:
            await asyncio.sleep(0)
        second = await client.post("/v1/search", json=large)
        refused(second, 503, "overloaded", None)
        assert second.headers["retry-after"] == "1"
        release.set()
        assert (await client.post("/v1/search", json=BOTH)).status_code == 200
        assert (await first).status_code == 200
        assert (await client.post("/v1/search", json=large)).status_code == 200


async def test_work_may_take_longer_than_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    backend = FakeBackend()
    backend.before = lambda: asyncio.sleep(0.1)
    assert (await search(BOTH, backend)).status_code == 200
