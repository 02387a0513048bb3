"""Searches through HTTP: the shipped settings of Ray Serve against its default proxy, in turns. One JSON line.

python jobs/bench/serving.py RUN [--clients 16] [--seconds 10] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import numpy as np

from sidray.finished import RunFolder
from sidray.retrieval.index import PartitionedIndex

DEFAULT_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
READY_S = 180


def queries_of(run: str) -> list[str]:
    """Titles of the catalogue, as people might type them."""
    index = PartitionedIndex.load(RunFolder.open(run).output("index"), threads=1)
    rows = np.random.default_rng(0).permutation(index.manifest.count)[:2000]
    return [item["title"] for item in index.fields(rows)]


@contextmanager
def served(run: str, environment: dict[str, str]) -> Iterator[str]:
    """`sidray serve RUN` in a process of its own; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sidray.cli", "serve", run, "--port", str(port)]
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
    took: list[float] = []
    failed = 0
    texts = itertools.cycle(queries)
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        while (started := time.perf_counter()) < end:
            async with session.post(f"{url}/v1/search", json={"query": next(texts), "k": 10}) as answer:
                await answer.read()
                failed += answer.status != 200
            took.append(time.perf_counter() - started)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return {"requests/s": len(took) / seconds, "p50_ms": p50, "p99_ms": p99, "failed": failed}


def measure(run: str, clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    queries = queries_of(run)
    found: dict[str, list[dict[str, float]]] = {"shipped": [], "default proxy": []}
    for _ in range(rounds):
        for name, environment in (("shipped", {}), ("default proxy", DEFAULT_PROXY)):
            with served(run, environment) as url:
                asyncio.run(load(url, queries, clients, 2))  # warm
                found[name].append(asyncio.run(load(url, queries, clients, seconds)))
    mean = {
        name: {key: round(float(np.mean([each[key] for each in each_round])), 2) for key in each_round[0]}
        for name, each_round in found.items()
    }
    ratio = mean["shipped"]["requests/s"] / mean["default proxy"]["requests/s"]
    return {
        "bench": "serving",
        "clients": clients,
        **mean,
        "ratio": round(ratio, 3),
        "p99/p50": round(mean["shipped"]["p99_ms"] / mean["shipped"]["p50_ms"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    print(json.dumps(measure(given.run, given.clients, given.seconds, given.rounds)))


if __name__ == "__main__":
    main()
