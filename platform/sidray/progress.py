"""Progress of long work: a bar on a terminal, a line every half minute in a log.

with progress("embed", total) as advance: advance(128)
with follow(uri): ...        # shows what a worker notes, `Notes(uri)`: write(name, step, steps, told), say(line)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from tqdm import tqdm

from sidray import storage

LINE_EVERY_S = 30.0
NOTE_EVERY_S = 2.0


class Advance(Protocol):
    def __call__(self, count: int, told: str = "", /) -> object:
        """`count` more are done; `told` is shown beside the bar."""


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Gives a function that takes how much more is done, where `done` were before."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=name, leave=False, file=sys.stderr) as bar:

            def move(count: int, told: str = "") -> None:
                bar.set_postfix_str(told, refresh=False)
                bar.update(count)

            yield move
        return
    at, started, shown = done, time.monotonic(), time.monotonic()

    def advance(count: int, told: str = "") -> None:
        nonlocal at, shown
        at += count
        now = time.monotonic()
        if now - shown > LINE_EVERY_S and at > done:
            shown = now
            rate = (at - done) / (now - started)
            line = f"  {name}: {at}/{total} ({100 * at / total:.0f} %), {rate:.3g}/s, {(total - at) / rate:.0f} s left"
            print(f"{line}; {told}" if told else line, file=sys.stderr, flush=True)

    yield advance


class Notes:
    """Notes of a worker on its progress, at most one every NOTE_EVERY_S, and what it says, where the driver can read
    them."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._last = 0.0
        self._note: dict[str, Any] = {"said": []}

    def write(self, name: str, step: int, steps: int, told: str) -> None:
        """`told`: how it goes, in words."""
        now = time.monotonic()
        if now - self._last > NOTE_EVERY_S or step == steps:
            self._last = now
            self._note |= {"name": name, "step": step, "steps": steps, "told": told}
            self._write()

    def say(self, line: str) -> None:
        """One line for the driver's log."""
        self._note["said"].append({"line": line, "time": time.time()})
        self._write()

    def _write(self) -> None:
        with suppress(OSError):  # training goes on without its bar
            storage.write_json(self.uri, self._note)


@contextmanager
def follow(uri: str) -> Iterator[None]:
    """Shows the notes at `uri` while the block runs, a bar for each name."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(uri, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(uri: str, stop: threading.Event) -> None:
    said: list[dict[str, Any]] = []

    def read() -> dict[str, Any] | None:
        note = _read(uri)
        for each in note.get("said", []) if note is not None else []:
            if each not in said:
                said.append(each)
                print(f"  {each['line']}", file=sys.stderr, flush=True)
        return note if note is not None and "name" in note else None

    note: dict[str, Any] | None = None
    while not stop.is_set():
        if note is None:
            stop.wait(NOTE_EVERY_S)
            note = read()
            continue
        name, seen = note["name"], note["step"]
        with progress(name, note["steps"], seen) as advance:
            while note["name"] == name and note["step"] >= seen and not stop.is_set():  # less: a worker began again
                advance(note["step"] - seen, note["told"])
                seen = note["step"]
                stop.wait(NOTE_EVERY_S)
                note = read() or note
    read()


def _read(uri: str) -> dict[str, Any] | None:
    try:
        return dict(storage.read_json(uri))
    except (OSError, ValueError):  # not there yet, or being replaced
        return None
