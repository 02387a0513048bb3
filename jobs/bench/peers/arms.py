"""An arm of a comparison: a command in a process of its own that prints one JSON line, and the memory of all its
processes.

    figures = run([python, "script.py", "--steps", "40"], threads=1)   # its line, "peak MiB" and "largest MiB"

Whatever goes wrong with it is a NotRunError with its reason, never an end of the whole benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import psutil

T = TypeVar("T")
Figures = dict[str, Any]
EVERY_S = 2.0  # between two looks at the memory
LIMIT_S = 1800.0
STOP_S = 60.0


class NotRunError(Exception):
    """Why a peer has no figures, in one line."""


def run(command: Sequence[object], threads: int) -> Figures:
    """The last JSON line that the command prints, and the peaks of memory: "peak MiB" of all its
    processes together, "largest MiB" of one. NotRunError when it fails or takes over LIMIT_S."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(command, threads, out, err)
        try:
            peaks = _watch(process)
        finally:
            stop(process)
        if process.returncode != 0:
            raise NotRunError(last_line(err) or f"exit code {process.returncode}")
        out.seek(0)
        lines = [line for line in out.read().decode().splitlines() if line.startswith("{")]
    if not lines:
        raise NotRunError("it printed no figures")
    return {**json.loads(lines[-1]), **{name: round(held / 2**20) for name, held in peaks.items()}}


def start(
    command: Sequence[object], threads: int, out: IO[bytes] | int, err: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """The command with so many threads for OpenMP. NotRunError when it cannot be started."""
    given = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    try:
        return subprocess.Popen([str(each) for each in command], stdout=out, stderr=err, env=given)
    except OSError as error:
        raise NotRunError(f"{command[0]}: {error.strerror}") from error


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end, then ends it and what it started, if any of them still runs."""
    below = _below(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for each in (psutil.Process(process.pid) if process.poll() is None else None, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each is not None:
                each.kill()
    psutil.wait_procs(below, timeout=STOP_S)
    process.wait()


def in_turns(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T] | NotRunError]:
    """Each arm once a round, in the other order every second round; one that failed is not tried again."""
    found: dict[str, list[T] | NotRunError] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            done = found[name]
            if isinstance(done, NotRunError):
                continue
            try:
                done.append(arms[name]())
            except NotRunError as reason:
                found[name] = reason
    return found


def mean(rounds: Sequence[Figures]) -> Figures:
    """Of each number the mean of the rounds; of anything else the last."""
    numbers = {key for key, value in rounds[0].items() if isinstance(value, int | float)}
    return {**rounds[-1], **{key: float(np.mean([each[key] for each in rounds])) for key in numbers}}


def _watch(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Waits for its end; the peaks of the bytes that its processes, and the largest of them, held. NotRunError after
    LIMIT_S."""
    peaks, until = {"peak MiB": 0, "largest MiB": 0}, time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        try:
            process.wait(EVERY_S)
        except subprocess.TimeoutExpired:
            held = _held(process.pid)
            peaks = {"peak MiB": max(peaks["peak MiB"], sum(held)), "largest MiB": max(peaks["largest MiB"], *held)}
        else:
            return peaks
    raise NotRunError(f"it took longer than {LIMIT_S:g} s")


def _held(pid: int) -> list[int]:
    """Bytes of a process and of each below it; of a page that several share each has its part (PSS)."""
    held = [0]
    for each in [pid, *(process.pid for process in _below(pid))]:
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            held.append(sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")))
    return held


def _below(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def last_line(file: IO[bytes]) -> str:
    """Of what a process wrote: mostly its error."""
    file.seek(0)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
