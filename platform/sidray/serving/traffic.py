"""Which run answers: weights for live traffic, copies for shadows, every run for writes.

    traffic = Traffic(connect, settings, Shares({"smgr-1a2b-smgr": 0.9, "smgr-3c4d-smgr": 0.1}))
    service = await traffic.service(pin="", fresh=False)

Each run is a Serve application of its own, with its own item table, so table versions of two runs have nothing to do
with each other, and vectors of two models neither: a request that asks for a table version or brings a vector goes to
the primary, the run of the highest weight, unless the client names a run in the header X-Sidray-Run. Writes go to every
run, and are acknowledged when all that have a weight have them. Shadows are waited for, so that their writes come in
order, but what they refuse or miss is only logged.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from sidray.errors import nearest
from sidray.serving.messages import Refusal
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.schemas import Model, SearchRequest
from sidray.serving.service import READY_S, Backend, Service, deadline
from sidray.serving.settings import GatewaySettings

KNOWN_S = 10.0  # after which a run is asked anew: `serve deploy` may have put another one under its name
READINESS_S = 1.0  # for which one answer counts: probes need no key, so many may ask
MAX_SHADOWED = 16  # copies of searches on their way at once; the next ones are not copied
_LOGGER = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Shares:
    """`weights`: application -> share of the searches, any positive numbers; `shadows`: get copies, not of vectors."""

    weights: dict[str, float]
    shadows: list[str] = field(default_factory=list)

    @property
    def primary(self) -> str:
        return max(self.weights, key=lambda name: self.weights[name])

    @property
    def everybody(self) -> list[str]:
        return [*self.weights, *(name for name in self.shadows if name not in self.weights)]


def _names(model: Model) -> tuple[str, str]:
    return model.id, model.run


class Traffic:
    """`connect` gives the backend of an application, which may not be up yet."""

    def __init__(self, connect: Callable[[str], Awaitable[Backend]], settings: GatewaySettings, shares: Shares) -> None:
        self._connect = connect
        self.settings = settings
        self._services: dict[str, Service] = {}
        self._asked: dict[str, float] = {}  # when a run was last asked what it is
        self._copies: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._readiness: asyncio.Task[Refusal | None] | None = None
        self._readiness_at = 0.0  # when that was asked for
        self.shares = shares

    async def service(self, pin: str = "", fresh: bool = False) -> Service:
        """The run that answers: the client's choice, the primary when a table version matters, or by weight. ApiError
        404 for a run that is not served, 503 while it is not up."""
        if pin:
            return await self._of(self._named(pin))
        names, weights = list(self.shares.weights), list(self.shares.weights.values())
        return await self._of(self.shares.primary if fresh else random.choices(names, weights)[0])

    async def weighted(self) -> list[Service]:
        """The runs that answer, the primary first. ApiError 503 when one is not up."""
        primary = self.shares.primary
        names = [primary, *(name for name in self.shares.weights if name != primary)]
        return list(await asyncio.gather(*(self._of(name) for name in names)))

    def in_shadows(self, write: Callable[[Service], Awaitable[object]]) -> list[asyncio.Task[None]]:
        """Starts a write in every shadow. What goes wrong there is logged; the tasks raise nothing."""
        names = [name for name in self.shares.shadows if name not in self.shares.weights]
        return [self._in_background(self._shadowed(name, write)) for name in names]

    async def ready(self) -> None:
        """ApiError 503 while the primary's model and index are not there. All who ask at once share one answer."""
        old = time.monotonic() - self._readiness_at > READINESS_S
        if self._readiness is None or (self._readiness.done() and old):
            self._readiness_at = time.monotonic()
            self._readiness = asyncio.create_task(self._refused_readiness())
        if refusal := await asyncio.shield(self._readiness):
            raise ApiError(refusal)

    async def _refused_readiness(self) -> Refusal | None:
        try:
            await (await self._of(self.shares.primary)).described()
        except ApiError as error:
            return error.refusal
        return None

    async def models(self) -> list[Model]:
        """The primary's first; of the others those that answer. ApiError 503 when the primary does not."""
        return [(await self._model(self.shares.primary))[1], *(model for _, model in await self._other_models())]

    async def with_model(self, name: str) -> tuple[Service, Model]:
        """The run whose model or name that is. Others are asked when it is not the primary's: they may be away.
        ApiError 404 when none of those that answer has it. It has no deadline: the primary may wait behind others."""
        found = [await self._model(self.shares.primary, None)]
        if name not in _names(found[0][1]):
            found += await self._other_models()
        for service, model in found:
            if name in _names(model):
                return service, model
        known = [model.id for _, model in found]
        message = f"no model is called {name[:80]!r}{nearest(name, known)}; served: {', '.join(known)}"
        raise ApiError(Refusal(404, "model_not_found", message, "model"))

    async def _other_models(self) -> list[tuple[Service, Model]]:
        names = [name for name in self.shares.everybody if name != self.shares.primary]
        answers = await asyncio.gather(*(self._model(name) for name in names), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ApiError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _model(self, name: str, seconds: float | None = READY_S) -> tuple[Service, Model]:
        service = await self._of(name)
        try:
            async with asyncio.timeout(seconds):
                return service, await service.backend.model()
        except TimeoutError as error:
            raise ApiError(overloaded(f"the model of run {name} does not answer")) from error

    def copy(self, request: SearchRequest) -> None:
        """Sends a search to the shadows, whose answers nobody waits for. Not a vector, which is of another run's model;
        and without a table version, which is another table's."""
        request = request.model_copy(update={"min_table_version": 0})
        for name in self.shares.shadows if request.vector is None else []:
            if len(self._copies) >= MAX_SHADOWED:
                return
            task = self._in_background(self._shadowed(name, lambda shadow: shadow.search(request)))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself forgets tasks that nobody holds
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shadowed(self, name: str, work: Callable[[Service], Awaitable[object]]) -> None:
        try:
            async with deadline(self.settings.write_timeout_s):
                await work(await self._of(name))
        except ApiError as error:
            _LOGGER.warning("shadow %s: %s", name, error.refusal.message)
        except Exception:
            _LOGGER.exception("shadow %s", name)

    def _named(self, pin: str) -> str:
        if pin not in self.shares.everybody:
            message = f"no run is called {pin[:80]!r}{nearest(pin, self.shares.everybody)}"
            raise ApiError(Refusal(404, "unknown_run", message, "X-Sidray-Run"))
        return pin

    async def _of(self, name: str) -> Service:
        if name not in self._services:
            try:
                async with asyncio.timeout(READY_S):
                    backend = await self._connect(name)
            except TimeoutError as error:
                raise ApiError(overloaded(f"run {name} is not up yet")) from error
            self._services[name] = Service(backend, self.settings)
            self._asked[name] = time.monotonic()
        elif time.monotonic() - self._asked[name] > KNOWN_S:
            self._asked[name] = time.monotonic()
            self._in_background(self._refreshed(name))
        return self._services[name]

    async def _refreshed(self, name: str) -> None:
        try:
            async with asyncio.timeout(READY_S):
                await self._services[name].backend.refresh()
        except (ApiError, TimeoutError):
            _LOGGER.warning("run %s does not say what it is; what it was counts on", name)
