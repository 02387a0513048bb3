"""What the driver shows of a worker's notes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidray import progress, storage


def test_a_worker_that_begins_again_gets_a_bar_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[list[int]] = []
    told: list[str] = []

    @contextmanager
    def bar(name: str, total: int, done: int) -> Iterator[progress.Advance]:
        mine = [done]
        bars.append(mine)

        def advance(count: int, words: str = "") -> None:
            mine.append(count)
            told.append(words)

        yield advance

    monkeypatch.setattr(progress, "progress", bar)
    monkeypatch.setattr(progress, "NOTE_EVERY_S", 0.01)
    uri = str(tmp_path / "progress.json")

    def shown() -> list[int]:
        return [sum(steps) for steps in bars]

    with progress.follow(uri):
        for step, wanted in [(7, [7]), (9, [9]), (2, [9, 2]), (4, [9, 4])]:
            storage.write_json(uri, {"name": "stage", "step": step, "steps": 10, "told": f"loss {step}"})
            deadline = time.monotonic() + 10
            while not (shown() == wanted and told[-1] == f"loss {step}") and time.monotonic() < deadline:
                time.sleep(0.01)
            assert shown() == wanted
            assert told[-1] == f"loss {step}"


def test_a_log_has_lines_with_rate_and_eta(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """40 of 100 were done before: 10 more in 20 s, and 50 are left, at the same pace."""
    clock = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "LINE_EVERY_S", 15.0)
    with progress.progress("finetune", 100, 40) as advance:
        advance(5, "loss 9")
        advance(5, "64 samples/s, data wait 2 %, loss 3.125")
    assert capsys.readouterr().err == (
        "  finetune: 50/100 (50 %), 0.5/s, 100 s left; 64 samples/s, data wait 2 %, loss 3.125\n"
    )
