"""Which workers take part: real process groups of three processes."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from sidray.cluster import free_port
from sidray.tasks.losses import rank, world_size
from sidray.training.group import gathered, takes_part


def _process(number: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=number, world_size=3)
    said: list[str] = []
    if not takes_part(32, said.append):
        assert not dist.is_initialized()
        return
    everyone = gathered((rank(), world_size(), number, len(said)))
    Path(folder, str(number)).write_text(str(everyone))
    dist.destroy_process_group()


def test_as_many_workers_train_as_divide_the_batches(tmp_path: Path) -> None:
    """Of three, 32 rows are shared by two."""
    mp.spawn(_process, args=(free_port(), str(tmp_path)), nprocs=3)
    expected = {str(number): str([(0, 2, 0, 1), (1, 2, 1, 0)]) for number in range(2)}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected
