"""A closed loop of clients of POST /v1/embeddings, the same for every server.

figures = asyncio.run(load(Target(url, model), inputs, tokens, clients=16, seconds=10))
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from .arms import NotRunError


@dataclass(frozen=True)
class Target:
    """`url`: of the embeddings route."""

    url: str
    model: str


async def load(
    target: Target, inputs: Sequence[list[str]], tokens: Sequence[int], clients: int, seconds: float
) -> dict[str, float]:
    """Each client sends the next input (a list of texts) when its last one is answered. tokens[i]: of inputs[i].
    "tokens/s", "p50 ms" and "p99 ms" of a request. NotRunError when one fails."""
    numbers = itertools.cycle(range(len(inputs)))
    took, read = list[float](), 0
    started = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal read
        while (began := time.perf_counter()) < started + seconds:
            number = next(numbers)
            await _ask(session, target, inputs[number])
            took.append(time.perf_counter() - began)
            read += tokens[number]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return {"tokens/s": read / (time.perf_counter() - started), "p50 ms": float(p50), "p99 ms": float(p99)}


async def _ask(session: aiohttp.ClientSession, target: Target, texts: list[str]) -> None:
    body = {"model": target.model, "input": texts, "encoding_format": "base64"}
    async with session.post(target.url, json=body) as answer:
        found = await answer.json(content_type=None)
        if answer.status != 200 or len(found["data"]) != len(texts):
            raise NotRunError(f"{answer.status} from {target.url}: {str(found)[:120]}")
