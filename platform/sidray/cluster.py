"""Joining or starting Ray, and the check that a job can be placed before it waits for ever.

with ray_cluster(): ...        # attaches to RAY_ADDRESS or a running job's cluster, else starts a local one
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sidray.errors import UserError, root_user_error

if TYPE_CHECKING:
    from sidray.training.settings import TrainingSettings

T = TypeVar("T")
DATA_TASK_CPUS = 0.5
_CORES = os.cpu_count() or 1
_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the bars of loading a file; long work has its own
    "RAY_task_oom_retries": "3",  # Ray's default repeats for ever a task that needs more memory than there is
}
LOCAL_ENVIRONMENT = {  # of a cluster that this process starts for itself: no preemption to watch, nobody to scrape
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray ends all idle workers but one for each CPU, and a new one imports PyTorch for seconds before it works.
    "RAY_num_workers_soft_limit": str(max(6, _CORES)),
    "RAY_worker_maximum_startup_concurrency": str(max(4, _CORES)),  # Ray warns of four times as many workers
    # glibc hands a large tensor's pages back when it is freed, and the next one faults them in anew: a fifth of a step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


def _has_gpu() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


def prepare_environment() -> None:
    """Variables that must stand before Ray starts; what the operator set stays.

    Whoever reaches Ray's ports may run code on its nodes: a cluster that this process starts takes nobody without a
    token (~/.ray/auth_token). One that is joined has its operator's mode: only a process of the same mode can."""
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:  # Ray reads it when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in _ENVIRONMENT.items():
        if name == "DS_ACCELERATOR" and _has_gpu():
            continue
        os.environ.setdefault(name, value)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Ray for the block: an initialised one is used as it is, RAY_ADDRESS is joined, else a local one starts."""
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if os.environ.get("RAY_ADDRESS"):
        _join(quiet)
    else:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # One logical CPU above the cores: a 2-core laptop holds two workers and their data tasks. "local", for else Ray
        # joins the cluster that the last `ray start` on this machine noted, be it dead.
        ray.init("local", num_cpus=max(3, _CORES), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _join(options: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(**options)
    except ConnectionError as error:
        remedy = (
            "start it, or mend RAY_ADDRESS; RAY_AUTH_MODE must be that of the cluster: "
            "`token` with its token in ~/.ray/auth_token, or `disabled`"
        )
        raise UserError(f"cannot join the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']}", remedy) from error


def preflight(settings: TrainingSettings) -> None:
    """Refuses workers that the cluster cannot place beside the one data task that each stage needs; of elastic ones
    the fewest.

    Asks an autoscaler for their nodes and waits up to `settings.wait_s` for whatever joins. Raises UserError with what
    is there and what is wanted."""
    import ray

    workers = settings.fewest
    cpus = workers * settings.cpus_per_worker + DATA_TASK_CPUS
    gpus = workers * settings.gpus_per_worker

    def there() -> bool:
        have = ray.cluster_resources()
        return bool(have.get("CPU", 0) >= cpus and have.get("GPU", 0) >= gpus)

    if there():
        return
    worker = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    with _requested([worker] * workers + [{"CPU": DATA_TASK_CPUS}]):
        deadline = time.monotonic() + settings.wait_s
        while time.monotonic() < deadline:
            time.sleep(0.5)
            if there():
                return
    have = ray.cluster_resources()
    setting = "min_workers" if settings.min_workers else "workers"
    raise UserError(
        f"training.{setting}={workers} with {settings.cpus_per_worker:g} CPU and "
        f"{settings.gpus_per_worker:g} GPU each, beside one data task of {DATA_TASK_CPUS:g} CPU, "
        f"need {cpus:g} CPU and {gpus:g} GPU; "
        f"the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU",
        f"lower training.{setting} or training.cpus_per_worker, or add nodes; where an autoscaler makes them, raise "
        f"training.wait_s={settings.wait_s:g}",
    )


@contextmanager
def _requested(bundles: list[dict[str, float]]) -> Iterator[None]:
    """For the block the autoscaler, if there is one, holds nodes for these resources; a request stands until the
    next."""
    from ray.autoscaler.sdk import request_resources

    wanted = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
    request_resources(bundles=wanted)
    try:
        yield
    finally:
        request_resources(bundles=[])


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens to now; `host` "": on any interface of this machine."""
    with socket.create_server((host, 0)) as free:
        return int(free.getsockname()[1])


def on_cluster(function: Callable[..., T], *args: object, cpus: float = 1.0, gpus: float = 0.0) -> T:
    """Runs a function as one Ray task and returns its result; a UserError of the task comes out as itself."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        remote = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus)  # type: ignore[call-overload]
        result: T = ray.get(remote.remote(*args))
    except RayTaskError as error:
        raise (root_user_error(error) or error) from error
    return result
