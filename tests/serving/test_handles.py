"""What happens between the gateway and its deployments: full queues, dead replicas, other errors."""

from __future__ import annotations

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from sidray.serving.handles import HandleBackend
from sidray.serving.messages import RunInfo
from sidray.serving.problems import ApiError


class Handle:
    """A deployment handle whose calls raise these errors, then answer `info`, or what they are given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.embed = self.info = SimpleNamespace(remote=self.remote)
        self.told: RunInfo | None = None

    def remote(self, *args: object) -> Coroutine[Any, Any, object]:
        async def answer() -> object:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return self.told or args

        return answer()


def backend_of(handle: Handle) -> HandleBackend:
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


async def test_other_errors_are_not_retried() -> None:
    handle = Handle(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await backend_of(handle).embed("soup", None)
    assert handle.calls == 1
