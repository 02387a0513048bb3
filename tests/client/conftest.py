"""Every test of this folder runs with Client and with AsyncClient, against one server for the session."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidray.client import AsyncClient, Client
from tests.client.servers import Scripted, serving

Connect = Callable[..., Any]


class Blocking:
    """An AsyncClient with the methods of a Client, on a loop of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.inner = AsyncClient(*args, **options)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        assert inspect.iscoroutinefunction(method)
        return lambda *args, **options: self._runner.run(method(*args, **options))

    def __repr__(self) -> str:
        return repr(self.inner)

    def close(self) -> None:
        self._runner.run(self.inner.close())
        self._runner.close()


class Clock:
    """Time that only pauses make go by; `pauses` are the seconds of each."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture(scope="session")
def _server() -> Iterator[Scripted]:
    with serving(Scripted()) as scripted:
        yield scripted


@pytest.fixture
def server(_server: Scripted) -> Scripted:
    _server.reset()
    return _server


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: Scripted) -> Iterator[Connect]:
    """Makes clients of the server, or of another URL, and closes them."""
    made: list[Any] = []

    def make(base_url: str = "", **options: Any) -> Any:
        made.append(request.param(base_url or server.url, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Injected into the client; jitter is at its highest."""
    fake = Clock()
    monkeypatch.setattr("sidray.client.retries.monotonic", lambda: fake.now)
    monkeypatch.setattr("sidray.client.retries.uniform", lambda low, high: high)
    monkeypatch.setattr("sidray.client.synchronous.sleep", fake.sleep)
    monkeypatch.setattr("sidray.client.asynchronous.sleep", fake.async_sleep)
    return fake
