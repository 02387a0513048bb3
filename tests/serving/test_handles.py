"""What happens between the gateway and its deployments: full queues, dead replicas, other errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from sidray.serving.handles import INPUTS_PER_CALL, PARTS, HandleBackend, InParts, encode_items
from sidray.serving.messages import EncodedItems, NewItem, RunInfo
from sidray.serving.problems import ApiError


class Handle:
    """A deployment handle whose calls raise these errors, then answer `info`, or what they are given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.embed = self.embed_all = self.info = SimpleNamespace(remote=self.remote)
        self.told: RunInfo | None = None

    def remote(self, *args: object) -> Coroutine[Any, Any, object]:
        async def answer() -> object:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return self.told or args

        return answer()


def backend_of(handle: Handle | Counting) -> HandleBackend:
    return HandleBackend(RunInfo(1, 1, ()), lambda name: handle)  # type: ignore[arg-type, return-value]


async def test_an_answer_passes() -> None:
    assert await backend_of(Handle()).embed("soup", None) == ("soup", None)


async def test_a_full_queue_is_503_at_once() -> None:
    handle = Handle(BackPressureError(num_queued_requests=3, max_queued_requests=3))
    with pytest.raises(ApiError) as caught:
        await backend_of(handle).embed("soup", None)
    assert caught.value.refusal.status == 503
    assert handle.calls == 1


async def test_a_dead_replica_costs_a_retry() -> None:
    handle = Handle(ActorDiedError())
    assert await backend_of(handle).embed("soup", None) == ("soup", None)
    assert handle.calls == 2


async def test_two_dead_replicas_are_503() -> None:
    handle = Handle(ActorDiedError(), ActorDiedError())
    with pytest.raises(ApiError) as caught:
        await backend_of(handle).embed("soup", None)
    assert caught.value.refusal.status == 503
    assert handle.calls == 2


async def test_a_run_may_become_another_one() -> None:
    handle = Handle()
    backend = backend_of(handle)
    recall, handle.told = backend.recall, RunInfo(1, 1, ())
    await backend.refresh()
    assert backend.recall is recall  # new handles would open new connections
    handle.told = RunInfo(3, 9, ("shop",))
    await backend.refresh()
    assert backend.info == handle.told
    assert len(backend.recall._shards) == 3


class Counting:
    """An embedder's handle whose calls take a while; `most` is how many there were at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.embed_all = SimpleNamespace(remote=self._embed_all)
        self.encode_items = SimpleNamespace(remote=self._encode_items)

    async def _embed_all(self, part: list[Any]) -> list[Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return part

    async def _encode_items(self, part: list[NewItem]) -> EncodedItems:
        ids = [int(item.item_id) for item in await self._embed_all(part)]
        return EncodedItems(np.array(ids, np.float32)[:, None], [[each] for each in ids], "m-1")


async def test_long_lists_leave_the_embedders_queue_to_searches() -> None:
    handle = Counting()
    backend = backend_of(handle)
    inputs: list[tuple[str, bytes | None]] = [(str(n), None) for n in range(3 * PARTS * INPUTS_PER_CALL + 1)]
    assert await asyncio.gather(backend.embed_all(inputs), backend.embed_all(inputs)) == [inputs] * 2
    assert handle.most == PARTS
    handle.most = 0
    embedder = InParts(handle)  # type: ignore[arg-type]
    items = [NewItem(text, "Soup", "", None, {}) for text, _ in inputs]
    for encoded in await asyncio.gather(*(encode_items(embedder, items) for _ in range(2))):
        assert encoded.vectors[:, 0].tolist() == list(range(len(inputs)))
        assert encoded.sids == [[n] for n in range(len(inputs))]
    assert handle.most == PARTS


async def test_a_part_that_fails_gives_its_place_back() -> None:
    handle = Handle(*(ValueError("a bug") for _ in range(2 * PARTS)))
    backend = backend_of(handle)
    for _ in range(2 * PARTS):
        with pytest.raises(ValueError, match="a bug"):
            await backend.embed_all([("soup", None)])
    assert await backend.embed_all([("soup", None)]) == [[("soup", None)]]


async def test_other_errors_are_not_retried() -> None:
    handle = Handle(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await backend_of(handle).embed("soup", None)
    assert handle.calls == 1
