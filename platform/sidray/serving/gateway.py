"""The HTTP ingress: the routes over the runs that are served, and the Serve deployment that holds them.

`create_api` needs no Ray: tests hand it a backend of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from ray import serve

from sidray.serving import page, problems
from sidray.serving.auth import Keys
from sidray.serving.guard import Guard
from sidray.serving.handles import HandleBackend
from sidray.serving.metrics import exporters, relay
from sidray.serving.routes import probes, router
from sidray.serving.settings import GatewaySettings
from sidray.serving.traffic import Shares, Traffic

Scrape = Callable[[], Awaitable[str]]


def create_api(traffic: Traffic, max_in_flight: int, keys: Keys, scrape: Scrape) -> FastAPI:
    """The ASGI application. No documentation pages: they load scripts from elsewhere. While it runs it follows the file
    of `keys`; where it asks for them /openapi.json says so, so that generated clients send one. The guard checks them.

    `scrape` gives the text of /metrics."""

    @asynccontextmanager
    async def running(api: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(keys.follow())
        try:
            yield
        finally:
            following.cancel()

    api = FastAPI(title="sidray", version="1", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=running)
    api.state.traffic = traffic
    key = [Depends(HTTPBearer(auto_error=False, description="an API key"))] if keys.needed else []
    api.include_router(router, dependencies=key)
    api.include_router(probes)
    api.include_router(page.router)
    api.add_middleware(Guard, max_in_flight=max_in_flight, keys=keys)
    problems.install(api)

    @api.get("/metrics", response_class=PlainTextResponse, dependencies=key)
    async def metrics() -> str:
        """Prometheus text: what Ray's exporters on all live nodes have."""
        return await scrape()

    return api


@serve.ingress()
class Gateway:
    """The ingress deployment."""

    def __init__(self, settings: GatewaySettings, shares: Shares) -> None:
        self._settings = settings
        self._keys = Keys.load(settings.keys, settings.requests_per_s)
        self._traffic = Traffic(HandleBackend.of, settings, shares)

    async def served(self) -> tuple[GatewaySettings, Shares]:
        """For whoever changes the traffic: what it is now."""
        return self._settings, self._traffic.shares

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._traffic, self._settings.max_ongoing, self._keys, _scrape)


async def _scrape() -> str:
    return await relay(await asyncio.to_thread(exporters))
