"""What the benchmarks of the service share: a service in a process of its own, queries, and load over HTTP.

with served(run, {}) as url:
    asyncio.run(load(url, queries_of(run), clients=16, seconds=5))       # closed loop: how much it can do
    asyncio.run(open_loop(url, queries_of(run), per_s=100, seconds=10))  # open loop: how long that takes
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import httpx
import numpy as np

from sidray.cluster import free_port
from sidray.finished import RunFolder
from sidray.retrieval.index import PartitionedIndex

READY_S = 180


def queries_of(run: str) -> list[str]:
    """Titles of the catalogue, as people might type them."""
    index = PartitionedIndex.load(RunFolder.open(run).output("index"), threads=1)
    rows = np.random.default_rng(0).permutation(index.manifest.count)[:2000]
    return [item["title"] for item in index.fields(rows)]


@contextmanager
def served(run: str, environment: dict[str, str], overrides: Sequence[str] = ()) -> Iterator[str]:
    """`sidray serve RUN` in a process of its own; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "sidray.cli", "serve", run, *overrides, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the service did not get ready")


async def load(url: str, queries: list[str], clients: int, seconds: float) -> dict[str, float]:
    """Closed loop: each client sends the next search when the last one is answered."""
    failed = 0
    texts = itertools.cycle(queries)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def one() -> None:
            nonlocal failed
            failed += not await search(session, url, next(texts))

        took = await closed_loop(one, clients, seconds)
    return {"requests/s": len(took) / seconds, **percentiles(took), "failed": failed}


async def closed_loop(one: Callable[[], Awaitable[object]], clients: int, seconds: float) -> list[float]:
    """The seconds of each call; every client makes the next one when its last one has ended."""
    took, end = list[float](), time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            await one()
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


async def open_loop(url: str, queries: list[str], per_s: float, seconds: float) -> dict[str, float]:
    """Searches at the times of a Poisson process, whether the last ones are answered or not."""
    texts = itertools.cycle(queries)
    failed = 0

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            nonlocal failed
            failed += not await search(session, url, next(texts))

        took = [took for _, took in await at_times(one, arrivals(per_s, seconds))]
    return {"requests/s": len(took) / seconds, **percentiles(took), "failed": failed}


async def search(session: aiohttp.ClientSession, url: str, query: str) -> bool:
    """Whether it was answered."""
    async with session.post(f"{url}/v1/search", json={"query": query, "k": 10}) as answer:
        await answer.read()
        return answer.status == 200


def arrivals(per_s: float, seconds: float = math.inf) -> Iterator[float]:
    """The seconds at which a Poisson process calls."""
    rng, now = np.random.default_rng(0), 0.0
    while (now := now + rng.exponential(1 / per_s)) < seconds:
        yield now


async def at_times(work: Callable[[], Awaitable[None]], times: Iterable[float]) -> list[tuple[float, float]]:
    """Begins `work` at each of these seconds from now: when that was meant to be (time.perf_counter), and the seconds
    from then to its end, so that what a slow service holds up counts."""
    start, done = time.perf_counter(), list[tuple[float, float]]()

    async def one(meant: float) -> None:
        await work()
        done.append((meant, time.perf_counter() - meant))

    async with asyncio.TaskGroup() as tasks:
        for each in times:
            await asyncio.sleep(start + each - time.perf_counter())
            tasks.create_task(one(start + each))
    return done


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def mean_of(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure the mean of the rounds."""
    return {key: round(float(np.mean([each[key] for each in rounds])), 2) for key in rounds[0]}
