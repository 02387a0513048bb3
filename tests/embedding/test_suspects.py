"""The rows beside one on which the encoder raises, or its process dies: real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sidray.embedding.pool import Encoder, encode_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.embedding.suspects import DEATHS, STARTS, Guard, Suspects
from sidray.errors import UserError

pytestmark = pytest.mark.ray


def actor(suspects: Suspects, kills: set[int], raises: set[int], most: int = 99) -> Any:
    """As Ray Data makes them: it is started again, and its call repeated, as often as it dies."""
    import ray

    class Encoder:
        def __init__(self) -> None:
            self.guard = Guard(suspects, ray.get_runtime_context().get_actor_id())

        def encode(self, rows: Any) -> pa.Table:
            if len(rows) > most:
                raise MemoryError(f"{len(rows)} rows")
            for row in rows.tolist():
                if row in kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                if row in raises:
                    raise ValueError(f"row {row} is\nno picture")
            return pa.table({"row": rows, "together": [len(rows)] * len(rows)})

        def call(self, rows: Any) -> list[Any]:
            return self.guard.each(rows, self.encode)

    return ray.remote(Encoder).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


def encoded(encoder: Any, rows: list[int]) -> tuple[dict[int, int], dict[int, str]]:
    """row -> rows that were encoded with it; row -> reason."""
    import ray

    parts = ray.get(encoder.call.remote(np.array(rows, np.int64)))
    good = [found for _, found in parts if isinstance(found, pa.Table)]
    reasons = {int(own[0]): found for own, found in parts if isinstance(found, str)}
    assert [row for own, _ in parts for row in own.tolist()] == rows  # each once, in order
    return {row["row"]: row["together"] for table in good for row in table.to_pylist()}, reasons


def test_one_row_kills_or_fails_and_the_others_are_encoded(ray_session: None) -> None:
    encoder = actor(Suspects.start(), kills={5}, raises={1})
    assert encoded(encoder, [7, 8]) == ({7: 2, 8: 2}, {})
    assert encoded(encoder, [0, 1, 2]) == ({0: 1, 2: 1}, {1: "cannot be encoded: ValueError: row 1 is"})
    good, reasons = encoded(encoder, [4, 5, 6])
    assert good == {4: 1, 6: 1}
    assert reasons == {5: f"the encoder's process died of it {DEATHS} times"}
    assert encoded(encoder, [9, 10]) == ({9: 2, 10: 2}, {})


def test_rows_that_fail_together_alone_are_too_many(ray_session: None) -> None:
    encoder = actor(Suspects.start(), kills=set(), raises=set(), most=3)
    assert encoded(encoder, [1, 2, 3])[1] == {}
    with pytest.raises(UserError, match=r"4 items cannot be encoded at once, each alone can: MemoryError: 4 rows"):
        encoded(encoder, [1, 2, 3, 4])


@pytest.mark.slow
def test_an_encoder_that_dies_before_it_encodes_anything_is_not_started_for_ever(ray_session: None) -> None:
    import ray

    suspects = Suspects.start()

    def make() -> Encoder:
        Guard(suspects, ray.get_runtime_context().get_actor_id())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(UserError, match=rf"died {STARTS} times while it loaded the model"):
        list(encode_rows("embed", 3, make, EmbeddingSettings(cpus=0.5)))
