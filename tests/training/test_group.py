"""Which workers take part: real process groups of three processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from sidray.tasks.losses import rank, world_size
from sidray.training.group import gathered, takes_part


def _process(number: int, port: int, divisor: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=number, world_size=3)
    said: list[str] = []
    if not takes_part(divisor, said.append):
        assert not dist.is_initialized()
        return
    everyone = gathered((rank(), world_size(), number, len(said)))
    Path(folder, str(number)).write_text(str(everyone))
    dist.destroy_process_group()


@pytest.mark.parametrize(("divisor", "team"), [(32, 2), (30, 3)])
def test_as_many_workers_train_as_divide_the_batches(tmp_path: Path, divisor: int, team: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(_process, args=(port, divisor, str(tmp_path)), nprocs=3)
    expected = str([(number, team, number, int(number == 0 and team < 3)) for number in range(team)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(n): expected for n in range(team)}
