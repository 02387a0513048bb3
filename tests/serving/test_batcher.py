"""The batcher: every row gets its own result, no batch passes the budget, one bad row spoils no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.serving.batcher import Batcher

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@settings(max_examples=50)
@given(costs=st.lists(st.integers(1, 12), min_size=1, max_size=30), budget=st.integers(1, 20))
def test_batches_hold_the_budget_and_keep_the_order(costs: list[int], budget: int) -> None:
    batches: list[list[int]] = []

    def compute(rows: list[int]) -> list[int]:
        batches.append(rows)
        return [row * 10 for row in rows]

    async def work() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, budget, 0.0)
            return await asyncio.gather(*(batcher.submit(row, cost) for row, cost in enumerate(costs)))

    assert run(work()) == [row * 10 for row in range(len(costs))]
    assert [row for batch in batches for row in batch] == list(range(len(costs)))
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        padded = max(costs[row] for row in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
        if following:  # no batch ends early: the next row would not have fitted
            assert max(costs[row] for row in [*batch, following[0]]) * (len(batch) + 1) > budget


def test_what_arrives_while_the_model_computes_is_the_next_batch() -> None:
    batches: list[list[str]] = []
    gate = threading.Event()

    def compute(rows: list[str]) -> list[str]:
        batches.append(rows)
        gate.wait(5)
        return rows

    async def work() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, 100, 0.0)
            first = asyncio.create_task(batcher.submit("a"))
            while not batches:
                await asyncio.sleep(0.001)
            assert batcher.busy_s > 0
            rest = [asyncio.create_task(batcher.submit(name)) for name in "bcd"]
            await asyncio.sleep(0)
            gate.set()
            assert await asyncio.gather(first, *rest) == ["a", "b", "c", "d"]
            assert batcher.busy_s == 0

    run(work())
    assert batches == [["a"], ["b", "c", "d"]]


def test_an_idle_batcher_waits_for_company() -> None:
    batches: list[list[str]] = []

    def compute(rows: list[str]) -> list[str]:
        batches.append(rows)
        return rows

    async def work() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, 100, 0.2)
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(0.02)
            await asyncio.gather(first, batcher.submit("b"))

    run(work())
    assert batches == [["a", "b"]]


def test_a_bad_row_fails_alone() -> None:
    def compute(rows: list[int]) -> list[int]:
        if 2 in rows:
            raise ValueError("bad row")
        return rows

    async def work() -> list[int | BaseException]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, 100, 0.0)
            answers = await asyncio.gather(*(batcher.submit(row) for row in range(4)), return_exceptions=True)
            assert await batcher.submit(9) == 9  # and the batcher lives on
            return answers

    answers = run(work())
    assert [answers[0], answers[1], answers[3]] == [0, 1, 3]
    assert isinstance(answers[2], ValueError)


def test_a_client_that_has_gone_costs_nothing() -> None:
    computed: list[str] = []

    def compute(rows: list[str]) -> list[str]:
        computed.extend(rows)
        return rows

    async def work() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, 100, 0.02)
            gone = asyncio.create_task(batcher.submit("gone"))
            stays = asyncio.create_task(batcher.submit("stays"))
            await asyncio.sleep(0)
            gone.cancel()
            assert await stays == "stays"
            with pytest.raises(asyncio.CancelledError):
                await gone

    run(work())
    assert computed == ["stays"]


def test_what_waits_and_is_computed_is_outstanding() -> None:
    gate = threading.Event()

    def compute(rows: list[int]) -> list[int]:
        gate.wait(5)
        if -1 in rows:
            raise ValueError("bad")
        return rows

    async def work() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(compute, executor, 8, 0.0)
            tasks = [asyncio.create_task(batcher.submit(row, cost)) for row, cost in ((1, 5), (-1, 4), (3, 2))]
            await asyncio.sleep(0.01)
            seen = [batcher.outstanding]
            gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [*seen, batcher.outstanding]

    assert run(work()) == [11, 0]
