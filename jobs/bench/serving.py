"""Searches through HTTP: the shipped settings of Ray Serve against its default proxy, in turns. One JSON line.

python jobs/bench/serving.py RUN [--clients 16] [--seconds 10] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from service import load, mean_of, queries_of, served

DEFAULT_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}


def measure(run: str, clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    queries = queries_of(run)
    found: dict[str, list[dict[str, float]]] = {"shipped": [], "default proxy": []}
    for _ in range(rounds):
        for name, environment in (("shipped", {}), ("default proxy", DEFAULT_PROXY)):
            with served(run, environment) as url:
                asyncio.run(load(url, queries, clients, 2))  # warm
                found[name].append(asyncio.run(load(url, queries, clients, seconds)))
    mean = {name: mean_of(each) for name, each in found.items()}
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
