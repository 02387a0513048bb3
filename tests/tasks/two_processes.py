"""Loss and gradients of a global batch, by this process or by two of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from sidray.cluster import free_port
from sidray.training.module import StageModule

Gradients = tuple[float, dict[str, Tensor]]
Compute = Callable[[str, int, int, int], Gradients]  # folder, chunk, rank, world; a function of a module: it is pickled


def gradients_of(module: StageModule, batch: Mapping[str, Tensor], world: int) -> Gradients:
    """As a data-parallel engine would average them; `batch` is this rank's share."""
    loss, _ = module(batch)
    loss.backward()
    found = {n: p.grad.clone() / world for n, p in module.model.named_parameters() if p.grad is not None}
    total = loss.detach() / world
    if world > 1:
        for value in (total, *found.values()):
            torch.distributed.all_reduce(value)
    return total.item(), found


def _process(rank: int, compute: Compute, folder: str, chunk: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    loss, found = compute(folder, chunk, rank, 2)
    if rank == 0:
        torch.save({"loss": loss, "gradients": found}, f"{folder}/two.pt")
    torch.distributed.barrier()  # a process that leaves early breaks the other one off
    torch.distributed.destroy_process_group()


def check_agreement(compute: Compute, folder: Path, chunk: int) -> None:
    """Loss and every gradient to 1e-5: 1 process whole, 1 process in chunks, 2 processes in chunks of `chunk`."""
    whole_loss, whole = compute(str(folder), 0, 0, 1)
    chunked_loss, chunked = compute(str(folder), 5, 0, 1)
    mp.spawn(_process, args=(compute, str(folder), chunk, free_port()), nprocs=2)
    two = torch.load(folder / "two.pt", weights_only=True)
    assert chunked_loss == pytest.approx(whole_loss, abs=1e-5)
    assert two["loss"] == pytest.approx(whole_loss, abs=1e-5)
    assert set(whole) == set(chunked) == set(two["gradients"])
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
        torch.testing.assert_close(two["gradients"][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
