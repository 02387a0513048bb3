"""Nodes that come with work and go with idleness. A job, a pause, a service whose load rises and falls, a pause.

    python jobs/bench/nodes.py [--clients 24] [--seconds 90] [--plot FILE.png]

The head has no CPU for work, as on Kubernetes; Ray's autoscaler (v2) asks a provider for worker nodes of 2 CPUs that
starts each as a process of this machine. The job is `sidray run smgr-debug` with two training workers, the service
`sidray serve` of that run with replicas that follow the load. One JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidray.cluster import free_port, prepare_environment
from sidray.storage import list_names

NODE_CPUS, MAX_NODES = 2, 5
HEAD = "ray.head.default"  # the autoscaler expects this name
IDLE_S = 15
GONE_S = 240  # at most, until the last node is gone
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # what the provider calls the head
JOB = ["smgr-debug", "training.workers=2", "training.cpus_per_worker=1", "training.wait_s=180", "embedding.actors=2"]
SERVICE = [
    *(f"{name}.autoscaling.max_replicas=3" for name in ("embedder", "recall")),
    *(f"{name}.autoscaling.upscale_delay_s=2" for name in ("embedder", "recall")),
    *(f"{name}.autoscaling.downscale_delay_s=10" for name in ("embedder", "recall")),
    "embedder.autoscaling.target_tokens=16",
    "recall.autoscaling.target_ongoing_requests=2",
]


def configuration(gcs: str) -> dict[str, Any]:
    """Of a cluster whose provider starts processes of this machine."""
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    worker = {"CPU": NODE_CPUS, "object_store_memory": 150 * 2**20}
    types = {
        "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": MAX_NODES},
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": gcs,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": types,
        "head_node_type": HEAD,
        "max_workers": MAX_NODES,
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A head that scales its cluster; yields its address. It and all that it started end with the block."""
    gcs, dashboard, agent = (free_port() for _ in range(3))
    address = f"{socket.gethostbyname(socket.gethostname())}:{gcs}"
    (folder / "cluster.yaml").write_text(json.dumps(configuration(address)))
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder / 'cluster.yaml'}", f"--port={gcs}", f"--temp-dir={folder / 'ray'}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    head = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        yield address
    finally:
        head.terminate()
        head.wait(120)


@dataclass(frozen=True)
class Sample:
    """Worker nodes that are alive, and CPUs in use, `at` seconds from the start."""

    at: float
    nodes: int
    used: float
    phase: str


class Watch:
    """Samples the cluster every second; `phase` is set by whoever does the work."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.phase = "start"
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import ray

        while True:
            workers = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            have, left = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
            at = time.perf_counter() - self._started
            self.samples.append(Sample(at, len(workers), max(0.0, have - left), self.phase))
            time.sleep(1)

    def until_idle(self, phase: str) -> None:
        """Waits until no worker node is left, at most GONE_S."""
        self.phase = phase
        deadline = time.monotonic() + GONE_S
        while self.samples[-1].nodes and time.monotonic() < deadline:
            time.sleep(1)

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each phase: its seconds, the most nodes, and those at its end."""
        found = {}
        for phase in dict.fromkeys(each.phase for each in self.samples):
            own = [each for each in self.samples if each.phase == phase]
            seconds = round(own[-1].at - own[0].at, 1)
            found[phase] = {"seconds": seconds, "most nodes": max(s.nodes for s in own), "at its end": own[-1].nodes}
        return found


def work(watch: Watch, root: Path, clients: int, seconds: float) -> dict[str, Any]:
    from service import load, queries_of, served

    watch.phase = "job"
    command = [sys.executable, "-m", "sidray.cli", "run", *JOB, f"runs.root={root}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    watch.until_idle("after the job")
    (name,) = list_names(f"{root}/runs")
    run = f"{root}/runs/{name}"
    watch.phase = "one client"
    with served(run, {}, SERVICE) as url:
        quiet = asyncio.run(load(url, queries_of(run), 1, seconds / 3))
        watch.phase = f"{clients} clients"
        busy = asyncio.run(load(url, queries_of(run), clients, seconds))
        watch.phase = "one client again"
        after = asyncio.run(load(url, queries_of(run), 1, seconds))
    watch.until_idle("after the service")
    return {"one client": quiet, f"{clients} clients": busy, "one client again": after}


def plot(path: str, samples: Sequence[Sample]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    at = [each.at for each in samples]
    axes.step(at, [each.nodes for each in samples], where="post", label="worker nodes")
    axes.plot(at, [each.used for each in samples], linewidth=0.8, color="C1", label="CPUs in use")
    for index, phase in enumerate(dict.fromkeys(each.phase for each in samples)):
        own = [each.at for each in samples if each.phase == phase]
        axes.axvspan(own[0], own[-1], color="grey", alpha=0.12 if index % 2 else 0.0)
        axes.text(own[0], axes.get_ylim()[1], f" {phase}", va="top", fontsize=8, rotation=90)
    axes.set(xlabel="seconds", title=f"Nodes of {NODE_CPUS} CPUs that Ray's autoscaler adds and removes")
    axes.legend(fontsize=8, loc="center right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="nodes") as name, cluster(Path(name)) as address:
        os.environ["RAY_ADDRESS"] = address
        prepare_environment()
        import ray

        join(address)
        watch = Watch()
        answered = work(watch, Path(name) / "runs", arguments.clients, arguments.seconds)
        ray.shutdown()
    figures = {phase: {key: round(value, 4) for key, value in each.items()} for phase, each in answered.items()}
    print(json.dumps({"bench": "nodes", "phases": watch.summary(), "searches": figures}))
    if arguments.plot:
        plot(arguments.plot, watch.samples)


def join(address: str, wait_s: float = 60) -> None:
    import ray

    deadline = time.monotonic() + wait_s
    while not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


if __name__ == "__main__":
    main()
