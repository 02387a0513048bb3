"""How busy 32 clients of single queries keep the embedder's model thread, and how much it pads: one JSON line.

    python jobs/bench/embedder.py RUN [a.b=c ...] [--clients 32] [--seconds 10] [--rounds 2]

Handle calls from 32 tasks of one process to one replica, as the gateway's. Each further argument is a group of settings
of the embedder, such as `padding=1,batch_wait_ms=0`: they take turns with the shipped ones, which are "". What is known
so far goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
from typing import Any

import ray
from service import closed_loop, mean_of, percentiles, queries_of

from sidray.cluster import prepare_environment
from sidray.finished import RunFolder
from sidray.serving.environment import serve_environment
from sidray.serving.settings import EmbedderSettings

METRICS = ("rows", "busy_ms", "tokens", "padded_tokens")
FLUSHED_S = 3.0  # after which the exporter has what a replica counted
_SAMPLE = re.compile(r'sidray_embedder_(\w+?)(?:_total)?\{.*lane="queries".*\} (\S+)')


async def counted() -> dict[str, float]:
    """What the replica has counted for single queries."""
    from sidray.serving.metrics import exporters, relay

    await asyncio.sleep(FLUSHED_S)
    totals = dict.fromkeys(METRICS, 0.0)
    for name, value in _SAMPLE.findall(await relay(exporters())):
        if name in totals:
            totals[name] += float(value)
    return totals


async def calls(handle: Any, queries: list[str], clients: int, seconds: float) -> list[float]:
    """Closed loop: the seconds of each call."""
    texts = itertools.cycle(queries)

    async def one() -> None:
        await handle.embed.remote(next(texts), None)

    return await closed_loop(one, clients, seconds)


async def figures(handle: Any, queries: list[str], clients: int, seconds: float) -> dict[str, float]:
    await calls(handle, queries, clients, 3)  # warm
    before, started = await counted(), time.perf_counter()
    took = await calls(handle, queries, clients, seconds)
    lasted, after = time.perf_counter() - started, await counted()
    rows, busy, tokens, padded = (after[name] - before[name] for name in METRICS)
    own = {"rows/s": len(took) / lasted, "counted rows/s": rows / lasted, "busy": busy / lasted / 1000}
    return own | {"padding": padded / tokens - 1 if tokens else float("nan"), **percentiles(took)}


async def measure(run: str, variants: list[str], clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    from ray import serve

    from sidray.serving.embedder import Embedder

    queries, found = queries_of(run), {name: list[dict[str, float]]() for name in variants}
    options: dict[str, Any] = {"max_ongoing_requests": 2 * clients, "graceful_shutdown_timeout_s": 1}
    deployment: Any = serve.deployment(Embedder, **options)
    serve.start(proxy_location="Disabled")
    for _, name in itertools.product(range(rounds), variants):
        values = dict(pair.split("=", 1) for pair in name.split(",") if pair)
        app = deployment.bind(RunFolder.open(run), EmbedderSettings.model_validate(values))
        handle = await asyncio.to_thread(serve.run, app, name="bench", route_prefix=None)
        found[name].append(await figures(handle, queries, clients, seconds))
        await asyncio.to_thread(serve.delete, "bench")
        print(json.dumps({name: found[name][-1]}), file=sys.stderr, flush=True)
    means = {name or "shipped": mean_of(each) for name, each in found.items()}
    ratios = {name: round(each["rows/s"] / means["shipped"]["rows/s"], 3) for name, each in means.items()}
    return {"bench": "embedder", "clients": clients, **means, "rows/s of shipped": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_intermixed_args()
    prepare_environment()
    serve_environment()
    quick = {"metrics_report_interval_ms": 500}
    ray.init(
        "local", num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False, _system_config=quick
    )
    variants = ["", *given.settings]
    print(json.dumps(asyncio.run(measure(given.run, variants, given.clients, given.seconds, given.rounds))))


if __name__ == "__main__":
    main()
