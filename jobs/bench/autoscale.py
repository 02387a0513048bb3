"""Replicas that follow the load: 1, then 64, then 1 clients search a service that scales itself. One JSON line.

    python jobs/bench/autoscale.py RUN [a.b=c ...] [--clients 64] [--seconds 20 90 90] [--plot FILE.png]

Each client sends the next search when the last one is answered: in turn a bare one, and one through sidray.client,
which retries what the service says may be retried; the percentiles are of the bare ones. `up_s` counts from when the
clients come until a deployment has its largest number of replicas, `down_s` from when they go until it stays at one.
a.b=c are overrides of `sidray serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import ray
from service import mean_of, percentiles, queries_of, served

from sidray.client import ApiError, AsyncClient, ConnectionFailed
from sidray.cluster import prepare_environment
from sidray.serving.environment import serve_environment

SCALED = ("Gateway", "Embedder", "Recall")
CPUS = 8  # logical ones: the replicas are placed by them, not by the machine's cores
SETTINGS = [
    *(f"{name.lower()}.autoscaling.max_replicas=3" for name in SCALED),
    *(f"{name.lower()}.autoscaling.upscale_delay_s=2" for name in SCALED),
    *(f"{name.lower()}.autoscaling.downscale_delay_s=10" for name in SCALED),
    "gateway.autoscaling.target_ongoing_requests=16",
    "embedder.autoscaling.target_tokens=16",
    "recall.autoscaling.target_ongoing_requests=4",
]
EVERY_S = 1.0
KINDS = ("bare", "sidray.client")


@dataclass(frozen=True)
class Answer:
    """To a search that began `at` seconds from the start; `error` is "" when it has hits."""

    at: float
    took_s: float
    kind: str
    error: str


@dataclass(frozen=True)
class Sample:
    """The clients and the running replicas of each deployment, `at` seconds from the start."""

    at: float
    clients: int
    replicas: dict[str, int]


class Load:
    """`clients` from seconds[0] to seconds[0] + seconds[1], one before and after."""

    def __init__(self, url: str, queries: Sequence[str], clients: int, seconds: Sequence[float]) -> None:
        self._url = url
        self._texts = itertools.cycle(queries)
        self._clients = clients
        self.come, self.go, self.end = itertools.accumulate(seconds)
        self._start = 0.0
        self.answers: list[Answer] = []
        self.samples: list[Sample] = []

    async def run(self) -> None:
        self._start = time.perf_counter()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as bare, AsyncClient(self._url) as retrying:
            others = (self._client(bare, retrying, self.come, self.go) for _ in range(self._clients - 1))
            await asyncio.gather(self._sample(), self._client(bare, retrying, 0, self.end), *others)

    def clients_at(self, at: float) -> int:
        return self._clients if self.come <= at < self.go else 1

    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _client(self, bare: aiohttp.ClientSession, retrying: AsyncClient, start: float, end: float) -> None:
        await asyncio.sleep(start)
        for kind in itertools.cycle(KINDS):
            if (began := self._now()) >= end:
                return
            query = next(self._texts)
            error = await (self._bare(bare, query) if kind == "bare" else _retried(retrying, query))
            self.answers.append(Answer(began, self._now() - began, kind, error))

    async def _bare(self, session: aiohttp.ClientSession, query: str) -> str:
        """The error, "" for none."""
        try:
            async with session.post(f"{self._url}/v1/search", json={"query": query, "k": 10}) as answer:
                await answer.read()
                return "" if answer.status == 200 else str(answer.status)
        except aiohttp.ClientError as error:
            return type(error).__name__

    async def _sample(self) -> None:
        while (at := self._now()) < self.end:
            self.samples.append(Sample(at, self.clients_at(at), await asyncio.to_thread(running_replicas)))
            await asyncio.sleep(at + EVERY_S - self._now())


async def _retried(client: AsyncClient, query: str) -> str:
    """The error, "" for none."""
    try:
        await client.search(query, k=10)
    except ApiError as error:
        return str(error.status)
    except ConnectionFailed:
        return "ConnectionFailed"
    return ""


def running_replicas() -> dict[str, int]:
    from ray import serve

    states: dict[str, dict[Any, int]] = {  # by the names of Serve's ReplicaState
        name: deployment.replica_states
        for application in serve.status().applications.values()
        for name, deployment in application.deployments.items()
    }
    return {name: states[name].get("RUNNING", 0) for name in SCALED}


def phases(load: Load) -> list[dict[str, float]]:
    """Of each number of clients: what was answered, and how long the bare searches took."""
    bounds = itertools.pairwise([0.0, load.come, load.go, load.end])
    return [_phase(load, start, end) for start, end in bounds]


def _phase(load: Load, start: float, end: float) -> dict[str, float]:
    answered = [each for each in load.answers if start <= each.at < end and not each.error]
    took = [each.took_s for each in answered if each.kind == "bare"]
    figures = mean_of([{"requests/s": len(answered) / (end - start), **percentiles(took)}])
    return {"clients": load.clients_at(start), **figures}


def followed(load: Load, name: str) -> dict[str, float | None]:
    """How one deployment followed the load; no `up_s` or `down_s` where it did not."""
    counts = [(sample.at, sample.replicas[name]) for sample in load.samples]
    peak, end = max(count for _, count in counts), counts[-1][1]
    up = next(at for at, count in counts if count == peak)
    down = next(at for at, count in reversed([(0.0, 0), *counts]) if count != end) + EVERY_S
    return {
        "peak": peak,
        "end": end,
        "up_s": round(up - load.come, 1) if peak > 1 else None,
        "down_s": round(down - load.go, 1) if peak > 1 and end == 1 else None,
    }


def plot(load: Load, file: Path) -> None:
    """Above replicas and clients, below what was answered."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    at = [sample.at for sample in load.samples]
    behind = above.twinx()
    behind.fill_between(at, [sample.clients for sample in load.samples], step="post", color="0.9", label="clients")
    behind.set(ylabel="clients", ylim=(0, None))
    above.set_zorder(behind.get_zorder() + 1)
    above.patch.set_visible(False)
    for name, shift in zip(SCALED, (0.04, 0.0, -0.04), strict=True):  # so that no line hides another
        above.step(at, [sample.replicas[name] + shift for sample in load.samples], where="post", label=name)
    above.set(ylabel="running replicas", ylim=(0, None))
    above.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=4)
    rate, edges = np.histogram([each.at for each in load.answers if not each.error], np.arange(0, load.end + 1))
    below.step(edges[:-1], rate, where="post", color="0.2")
    below.set(xlabel="seconds", ylabel="searches answered / s", ylim=(0, None), xlim=(0, load.end))
    figure.savefig(file, dpi=100)


def measure(run: str, overrides: Sequence[str], clients: int, seconds: Sequence[float]) -> tuple[Load, dict[str, Any]]:
    queries = queries_of(run)
    address = ray.get_runtime_context().gcs_address
    with served(run, {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}, [*SETTINGS, *overrides]) as url:
        load = Load(url, queries, clients, seconds)
        asyncio.run(load.run())
    errors = {kind: Counter(each.error for each in load.answers if each.kind == kind and each.error) for kind in KINDS}
    replicas = {name: followed(load, name) for name in SCALED}
    figures = {"searches": len(load.answers), "errors": errors, "replicas": replicas, "phases": phases(load)}
    return load, {"bench": "autoscale", **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs=3, default=[20.0, 90.0, 90.0])
    parser.add_argument("--plot", type=Path)
    given = parser.parse_intermixed_args()
    prepare_environment()
    serve_environment()
    ray.init("local", num_cpus=CPUS, include_dashboard=False, configure_logging=False, log_to_driver=False)
    load, line = measure(given.run, given.overrides, given.clients, given.seconds)
    if given.plot:
        plot(load, given.plot)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
