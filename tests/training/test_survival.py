"""Training under kill -9: of workers, of a node that comes back, of the driver; and with another number of workers.

SIDRAY_KILLS=20 pytest -m '' tests/training/test_survival.py    # `make chaos`
Each trial computes a longer last stage of the debug run anew, in a copy of its root, against an undisturbed one.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sidray.finished import RunFolder
from sidray.training.record import Record
from tests.serving.test_restart import kill_session, living_in
from tests.training.driver import STEPS
from tests.training.test_stage import FILES

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # test_run_notes.py kills a worker
KILLS = int(os.environ.get("SIDRAY_KILLS", "1"))
ROLE = "stage-finetune"  # dropped texts, drawn negatives: every random choice there is
EVEN = "stage-query2item"  # none that depends on how many workers share a batch
STEP_S = 0.4
WAIT_S = 600.0
Undisturbed = Callable[[str], Path]
OFTEN = "checkpoint_every=2"  # and after every sixth step, at a validation


class Driver:
    """A driver in a session of its own."""

    def __init__(self, run: str, environment: dict[str, str], *arguments: str) -> None:
        self.run = run
        self.log = Path(environment["TMPDIR"]) / "driver.log"
        command = [sys.executable, "-m", "tests.training.driver", run, *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """What it gives as soon as it gives something; fails when the driver ends before."""
        until = time.monotonic() + WAIT_S
        while not (found := what()):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.05)
        return found

    def whole(self) -> set[str]:
        """The whole checkpoints of the stage."""
        found = Path(self.run).parents[1].glob("steps/*/*/checkpoints/*/manifest.json")
        return {path.parent.name for path in found}

    def next_checkpoint(self) -> None:
        before = self.whole()
        self.wait_for(lambda: self.whole() - before)

    def workers(self) -> list[int]:
        """Processes that train."""
        found = []
        for pid in living_in(self.process.pid):
            with suppress(OSError):
                if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def output(self) -> Path:
        """Of the finished stage."""
        assert self.process.wait(WAIT_S) == 0, self.said
        return Path(re.findall(r"^output (.*)$", self.said, re.MULTILINE)[-1])


@contextmanager
def temporary(**variables: str) -> Iterator[dict[str, str]]:
    """An environment without a cluster, with a temporary folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="survival-", ignore_cleanup_errors=True) as folder:
        alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        yield {**alone, "TMPDIR": folder, **variables}


@contextmanager
def driver(run: str, role: str, step_s: float, *overrides: str, address: str = "") -> Iterator[Driver]:
    """kill -9 of its whole session at the end of the block, while its log can still be read."""
    with temporary(**({"RAY_ADDRESS": address} if address else {})) as environment:
        started = Driver(run, environment, role, str(step_s), *overrides)
        try:
            yield started
        finally:
            kill_session(started.process.pid)
            started.process.wait()


def copied(run: str, target: Path) -> str:
    """A copy of the whole root of a run, and in it the run."""
    shutil.copytree(RunFolder.open(run).root, target / "root")
    return str(target / "root" / "runs" / Path(run).name)


@pytest.fixture
def run(debug_run: str, tmp_path: Path) -> str:
    return copied(debug_run, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(debug_run: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Output of the stage of a role that nobody disturbed."""

    @functools.cache
    def output(role: str) -> Path:
        with driver(copied(debug_run, tmp_path_factory.mktemp(role)), role, 0) as alone:
            return alone.output()

    return output


def check_same(output: Path, undisturbed: Path, atol: float = 1e-5) -> None:
    """Losses and weights (to `atol`) of the two runs of a stage."""
    one, two = (Record.read(str(folder)).steps for folder in (undisturbed, output))
    assert [row["step"] for row in two] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(*([row["loss"] for row in each] for each in (two, one)), rtol=1e-4)
    weights, expected = (load_file(folder / "towers.safetensors") for folder in (output, undisturbed))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, atol=atol, err_msg=name)
    assert sorted(path.name for path in output.iterdir()) == FILES


def steps_of(said: str) -> list[tuple[int, int]]:
    """(step, workers) of every time that training went on from a checkpoint."""
    return [(int(s), int(w)) for s, w in re.findall(r"goes on from step (\d+) of \d+ with (\d+) workers", said)]


def test_killed_workers_go_on_from_the_last_checkpoint(run: str, undisturbed: Undisturbed) -> None:
    chance = random.Random(0)
    with driver(run, ROLE, STEP_S, OFTEN, f"max_failures={KILLS}") as trained:
        for _ in range(KILLS):
            trained.next_checkpoint()
            time.sleep(chance.uniform(0, 2 * STEP_S))
            os.kill(chance.choice(trained.wait_for(trained.workers)), signal.SIGKILL)
        output = trained.output()
        went_on = steps_of(trained.said)
    assert len(went_on) == KILLS
    assert all(step > 0 and workers == 2 for step, workers in went_on)
    check_same(output, undisturbed(ROLE))


def test_a_killed_driver_is_followed_by_one_that_goes_on(run: str, undisturbed: Undisturbed) -> None:
    chance = random.Random(1)
    for _ in range(KILLS):
        with driver(run, ROLE, STEP_S, OFTEN) as first:
            first.next_checkpoint()
            time.sleep(chance.uniform(0, 2 * STEP_S))
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
    with driver(run, ROLE, 0, OFTEN) as last:
        output = last.output()
        assert f"{ROLE}: continues attempt {output.name}" in last.said
        assert 0 < steps_of(last.said)[-1][0] < STEPS
    check_same(output, undisturbed(ROLE))


@contextmanager
def nodes() -> Iterator[tuple[str, Callable[[str], None]]]:
    """The address of a cluster of a head and two nodes, and a function that takes `kill` or `add`."""
    command, pipe = [sys.executable, "-m", "tests.training.nodes"], subprocess.PIPE
    with temporary() as environment:
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        assert process.stdin is not None
        assert process.stdout is not None
        lines = process.stdout

        def order(word: str) -> None:
            print(word, file=process.stdin, flush=True)
            assert lines.readline().strip() == "done"

        try:
            yield lines.readline().strip(), order
        finally:
            kill_session(process.pid)
            process.wait()


def test_training_goes_on_without_a_node_and_grows_when_it_is_back(run: str, undisturbed: Undisturbed) -> None:
    elastic = (
        "workers=2",
        "min_workers=1",
        "cpus_per_worker=2",
        "threads=1",
        "resize_s=2",
        f"max_failures={5 * KILLS}",
    )
    with nodes() as (address, order), driver(run, EVEN, 5 * STEP_S, *elastic, address=address) as trained:
        for turn in range(1, KILLS + 1):
            trained.next_checkpoint()
            order("kill")
            trained.wait_for(lambda turn=turn: sum(workers == 1 for _, workers in steps_of(trained.said)) >= turn)
            trained.next_checkpoint()
            order("add")
            trained.wait_for(lambda turn=turn: [workers for _, workers in steps_of(trained.said)].count(2) >= turn)
        output = trained.output()
    check_same(output, undisturbed(EVEN), atol=2e-4)


@pytest.mark.parametrize("zero", ["zero_stage=0", "zero_stage=2", "zero_stage=3", "zero_stage=3 offload=parameters"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_workers_goes_on_as_the_first(
    run: str, undisturbed: Undisturbed, zero: str, before: int, after: int
) -> None:
    """One driver is killed; the next one has more or fewer workers."""
    settings = (*zero.split(), "threads=1", OFTEN)
    with driver(run, EVEN, STEP_S, *settings, f"workers={before}") as first:
        first.next_checkpoint()
    with driver(run, EVEN, 0, *settings, f"workers={after}") as last:
        output = last.output()
        step, workers = steps_of(last.said)[-1]
    assert 0 < step < STEPS
    assert workers == after
    check_same(output, undisturbed(EVEN), atol=2e-4)
