"""The processes that train one model together: what each knows, told to all, and how many of them take part.

everyone = gathered(mine)                     # one value of each rank, in rank order
if not takes_part(divisor, say): return       # workers among whom the batches cannot be divided
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sidray.cluster import free_port
from sidray.tasks.losses import rank, world_size

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The picklable value of every rank, in rank order. All ranks call it, and none leaves before all have come."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def averaged(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Each metric's mean over the ranks."""
    values = torch.stack([value.float() for value in metrics.values()])
    if world_size() > 1:
        dist.all_reduce(values)
    return dict(zip(metrics, (values / world_size()).tolist(), strict=True))


def leads_node() -> bool:
    """Whether this is the first of the processes on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def on_node(value: T | None) -> T:
    """What the first process of this machine gave. All ranks call it."""
    node = os.environ.get("NODE_RANK", "0")
    return next(told for where, told in gathered((node, value)) if where == node and told is not None)


def takes_part(divisor: int, say: Callable[[str], object]) -> bool:
    """Leaves in the group the most workers that divide `divisor`; False on the workers that are left over."""
    there, mine = world_size(), rank()
    team = max(n for n in range(1, there + 1) if divisor % n == 0)
    if team == there:
        return True
    if mine == 0:
        say(f"{there} workers are there, {team} train: {there} cannot share batches that are multiples of {divisor}")
    port, backend = gathered(free_port(""))[0], dist.get_backend()
    dist.destroy_process_group()
    if mine >= team:
        return False
    os.environ |= {"WORLD_SIZE": str(team), "MASTER_PORT": str(port)}
    dist.init_process_group(backend, rank=mine, world_size=team)
    return True


def choose_device() -> None:
    """Before the first collective call: NCCL takes the current device of each process."""
    if torch.cuda.is_available():
        import ray.train.torch

        torch.cuda.set_device(ray.train.torch.get_device())
