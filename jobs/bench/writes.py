"""Searches beside writes, and how soon a write is found: one JSON line. Writes to the run's collection: give a copy.

    python jobs/bench/writes.py RUN [--upserts 50] [--seconds 20] [--rounds 3]

Searches arrive at half the rate that 16 clients reach, without and with upserts, in turns. PUTs come evenly, each with
5 new items, so that each of them is embedded. Of one PUT in 5 an item has a partition of its own, and is looked for
there every 50 ms by searches that ask for no table version: `fresh` counts from the PUT's start, `fresh_acknowledged`
from its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from service import at_times, load, mean_of, open_loop, percentiles, queries_of, served

PER_PUT, SAMPLED = 5, 5
LOOK_S = 0.05
LOST_S = 30.0


@dataclass
class Writes:
    """What became of the PUTs; seconds."""

    took: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    lost: int = 0


async def put(session: aiohttp.ClientSession, url: str, titles: list[str], writes: Writes, sampled: bool) -> None:
    """One PUT; then looks for its first item when it is `sampled`."""
    own = uuid.uuid4().hex
    items = [{"item_id": f"{own}-{n}", "title": f"{title} {own}", "partition": "new"} for n, title in enumerate(titles)]
    if sampled:
        items[0]["partition"] = own
    started = time.perf_counter()
    async with session.put(f"{url}/v1/items", json={"items": items}) as answer:
        body = await answer.json()
        done = time.perf_counter()
        if answer.status != 200:
            writes.failed[f"{answer.status} {body['error']['code']}"] += 1
            return
    writes.took.append(done - started)
    if not sampled:
        return
    while not await found(session, url, own):
        if time.perf_counter() > done + LOST_S:
            writes.lost += 1
            return
        await asyncio.sleep(LOOK_S)
    writes.fresh.append(time.perf_counter() - started)
    writes.acknowledged.append(time.perf_counter() - done)


async def found(session: aiohttp.ClientSession, url: str, partition: str) -> bool:
    """Whether a search in the partition finds anything; 404 while nobody knows it."""
    body = {"query": "anything", "k": 1, "partition": partition}
    async with session.post(f"{url}/v1/search", json=body) as answer:
        return answer.status == 200 and bool((await answer.json())["hits"])


async def upserts(url: str, queries: list[str], per_s: float, seconds: float, writes: Writes) -> None:
    count = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            nonlocal count
            count += 1
            titles = [queries[(PER_PUT * count + n) % len(queries)] for n in range(PER_PUT)]
            await put(session, url, titles, writes, count % SAMPLED == 0)

        await at_times(one, np.arange(0, seconds, PER_PUT / per_s))


async def beside(url: str, queries: list[str], rate: float, upserts_per_s: float, seconds: float) -> Any:
    """The searches' figures without and with upserts, and what became of those."""
    alone = await open_loop(url, queries, rate, seconds)
    writes = Writes()
    both = await asyncio.gather(
        open_loop(url, queries, rate, seconds), upserts(url, queries, upserts_per_s, seconds, writes)
    )
    await asyncio.sleep(1)
    return alone, both[0], writes


def rounded(seconds: list[float]) -> dict[str, float]:
    return mean_of([percentiles(seconds)])


def measure(run: str, upserts_per_s: float, seconds: float, rounds: int) -> dict[str, Any]:
    queries = queries_of(run)
    with served(run, {}) as url:
        asyncio.run(load(url, queries, 16, 3))  # warm
        saturated = asyncio.run(load(url, queries, 16, 6))
        rate = saturated["requests/s"] / 2
        asyncio.run(beside(url, queries, rate, upserts_per_s, 3))
        found = [asyncio.run(beside(url, queries, rate, upserts_per_s, seconds)) for _ in range(rounds)]
    alone, both = mean_of([each[0] for each in found]), mean_of([each[1] for each in found])
    took, fresh, acknowledged = (
        [value for *_, writes in found for value in getattr(writes, name)] for name in ("took", "fresh", "acknowledged")
    )
    return {
        "bench": "writes",
        "saturated requests/s": round(saturated["requests/s"], 1),
        "searches": alone,
        "searches beside upserts": both,
        "p99 ratio": round(both["p99_ms"] / alone["p99_ms"], 2),
        "p99 ratio of each round": [round(each[1]["p99_ms"] / each[0]["p99_ms"], 2) for each in found],
        "upserts/s": round(PER_PUT * len(took) / seconds / rounds, 1),
        "put": rounded(took),
        "fresh": rounded(fresh),
        "fresh_acknowledged": rounded(acknowledged),
        "sampled": len(fresh),
        "failed puts": sum((writes.failed for *_, writes in found), Counter()),
        "lost": sum(writes.lost for *_, writes in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--upserts", type=float, default=50.0, help="per second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(measure(given.run, given.upserts, given.seconds, given.rounds)))


if __name__ == "__main__":
    main()
