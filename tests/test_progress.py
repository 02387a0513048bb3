"""What the driver shows of a worker's notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidray import progress, storage


def test_a_worker_that_begins_again_gets_a_bar_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[list[int]] = []

    @contextmanager
    def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
        bars.append([])
        yield bars[-1].append

    monkeypatch.setattr(progress, "progress", bar)
    monkeypatch.setattr(progress, "NOTE_EVERY_S", 0.01)
    uri = str(tmp_path / "progress.json")

    def shown() -> list[int]:
        return [sum(steps) for steps in bars]

    with progress.follow(uri):
        for step, wanted in [(7, [7]), (9, [9]), (2, [9, 2]), (4, [9, 4])]:
            storage.write_json(uri, {"name": "stage", "step": step, "steps": 10})
            deadline = time.monotonic() + 10
            while shown() != wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            assert shown() == wanted
