"""A whole run on a cluster of several nodes, while kill -9 takes processes, nodes and the driver from it.

SIDRAY_KILLS=20 pytest -m '' tests/test_survival.py    # `make chaos`
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from sidray import storage
from sidray.finished import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray]
KILLS = int(os.environ.get("SIDRAY_KILLS", "1"))
NODE = {"num_cpus": 3, "object_store_memory": 150 * 2**20}
END_S = 900  # of a disturbed run
RESTING = {"ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without CPUs, as on Kubernetes, and two nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


class Disturbed:
    """`sidray run smgr-debug` as a process, started again whenever it ends without success."""

    def __init__(self, nodes: Any, root: Path, seed: int) -> None:
        self._nodes = nodes
        self._random = np.random.default_rng(seed)
        self._command = [sys.executable, "-m", "sidray.cli", "run", "smgr-debug", f"runs.root={root}"]
        self.starts = 0
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "RAY_ADDRESS": self._nodes.address}
        self._driver = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self.starts += 1

    def disturb(self) -> str:
        """Waits, and kills something; returns what."""
        self._until(time.monotonic() + self._random.uniform(5, 45))
        if self._driver.poll() is not None:
            return "nothing: it had ended"
        what = str(self._random.choice(["process", "node", "driver"]))
        return f"{what}: {getattr(self, f'_kill_{what}')()}"

    def _kill_process(self) -> str:
        """One that works: a training worker, an actor of a pool, a task."""
        own = [node.all_processes["raylet"][0].process.pid for node in self._nodes.worker_nodes]
        below = [process for pid in own for process in psutil.Process(pid).children(recursive=True)]
        named = [(process, (process.cmdline() or [""])[0]) for process in below]
        at_work = [(process, name) for process, name in named if name.startswith("ray::") and name not in RESTING]
        if not at_work:
            return "none was at work"
        process, name = at_work[self._random.integers(len(at_work))]
        process.send_signal(signal.SIGKILL)
        return name

    def _kill_node(self) -> str:
        """One leaves, and a new one comes."""
        node = sorted(self._nodes.worker_nodes, key=lambda node: str(node.node_id))[self._random.integers(2)]
        self._nodes.remove_node(node, allow_graceful=False)
        self._until(time.monotonic() + 5)
        self._nodes.add_node(**NODE)
        return str(node.node_id)

    def _kill_driver(self) -> str:
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        return str(self._driver.pid)

    def _until(self, deadline: float) -> None:
        while time.monotonic() < deadline and self._driver.poll() != 0:
            if self._driver.poll() is not None:
                self._start()
            time.sleep(0.2)

    def finish(self) -> None:
        self._until(time.monotonic() + END_S)
        if self._driver.poll() != 0:
            os.killpg(self._driver.pid, signal.SIGKILL)
            raise AssertionError(f"the run has not ended after {END_S} s and {self.starts} starts")


def weights(run: RunFolder) -> dict[str, np.ndarray[Any, Any]]:
    """Of all stages and tokenizers, by stage and name."""
    found = {}
    for role in run.steps:
        if role.startswith("stage-"):
            file = storage.join(run.output(role), "towers.safetensors")
            found |= {f"{role}/{name}": value for name, value in load_file(file).items()}
    return found


@pytest.mark.timeout(END_S + 300)
@pytest.mark.parametrize("trial", range(KILLS))
def test_a_disturbed_run_ends_as_an_undisturbed_one(nodes: Any, debug_run: str, tmp_path: Path, trial: int) -> None:
    disturbed = Disturbed(nodes, tmp_path, trial)
    killed = [disturbed.disturb() for _ in range(3)]
    disturbed.finish()
    print(f"trial {trial}: {disturbed.starts} starts; {'; '.join(killed)}", file=sys.stderr)
    (name,) = storage.list_names(str(tmp_path / "runs"))
    ours, theirs = weights(RunFolder.open(debug_run)), weights(RunFolder.open(str(tmp_path / "runs" / name)))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, atol=1e-5, err_msg=key)
    results = [
        storage.read_json(f"{run}/report/results.json")["results"] for run in (debug_run, tmp_path / "runs" / name)
    ]
    assert results[0].keys() == results[1].keys()
    for label, result in results[0].items():
        for metric, value in result["rows"]["all clicks"].items():
            assert results[1][label]["rows"]["all clicks"][metric] == pytest.approx(value, abs=1e-5), (
                f"{label} {metric}"
            )
