"""A process group of one size goes on from the checkpoint of another, past a torn one, as if nothing had happened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from sidray.cluster import free_port
from sidray.models.towers import Batch
from sidray.tasks.losses import rank
from sidray.training.checkpoint import Checkpoints, Made
from sidray.training.engine import make_engine
from sidray.training.module import StageModule
from sidray.training.resume import TAG, is_resharded, resume
from sidray.training.settings import StageSettings, TrainingSettings
from tests.models.tiny import random_batch, tiny_towers

ROWS = 12
STEPS = 6
# Groups with rates and decays of their own, one of a single element, a frozen part; steps so large that errors show.
STAGE = StageSettings(
    name="s",
    tasks={"query2item": 1.0, "causal": 0.5},
    train=["text", "connector", "mlp", "sids"],
    rates={"text": 0.5, "connector": 2.0, "mlp": 3.0},
    lr=3e-3,
    weight_decay=0.5,
    warmup=0,
)


class Scaled(StageModule):
    """With one more parameter, which has a group for itself: not every rank of ZeRO 1 and 2 has a part of it."""

    def __init__(self, folder: str) -> None:
        super().__init__(tiny_towers(Path(folder), 9), STAGE)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(batch)
        return loss * self.scale.sum(), metrics


def _process(number: int, world: int, port: int, training: TrainingSettings, folder: str) -> None:
    """Steps 1-6 with checkpoints after 3 and 5; or, when some are there, from the newest whole one on."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(number))
    os.environ.update(RANK=str(number), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=world)
    torch.manual_seed(0)
    module = Scaled(folder)
    said: list[str] = []
    checkpoints = Checkpoints(f"{folder}/checkpoints", 2, Made(world, training.zero_stage, ROWS), said.append)
    with checkpoints.newest() as found:
        universal = found is not None and is_resharded(found)
        engine = make_engine(module, STAGE, training, STEPS, ROWS, 0.25, universal)
        first = 0
        if found is not None:
            resume(engine, found)
            first = found.manifest.step
    losses = {}
    for step in range(first, STEPS):
        share = ROWS // world
        rows = slice(rank() * share, (rank() + 1) * share)
        loss, _ = engine({name: value[rows] for name, value in random_batch(module.model, ROWS, seed=step).items()})
        engine.backward(loss)
        engine.step()
        mean = loss.detach().float().clone()
        dist.all_reduce(mean)
        losses[step] = mean.item() / world
        if first == 0 and step + 1 in {3, 5}:
            with checkpoints.writing(step + 1) as own:
                engine.save_checkpoint(str(own), tag=TAG)
    checkpoints.close()
    if number == 0:
        Path(folder, "told.json").write_text(json.dumps([losses, said]))
    dist.barrier()
    dist.destroy_process_group()


def trained(world: int, training: TrainingSettings, folder: Path) -> tuple[dict[int, float], list[str]]:
    mp.spawn(_process, args=(world, free_port(), training, str(folder)), nprocs=world)
    losses, said = json.loads((folder / "told.json").read_text())
    return {int(step): loss for step, loss in losses.items()}, said


SLOW = [(zero, *worlds) for zero in (0, 1, 2, 3) for worlds in ((2, 1), (1, 2), (1, 3)) if (zero, *worlds) != (3, 2, 1)]


@pytest.mark.parametrize(
    ("zero", "before", "after"), [(3, 2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_another_number_of_processes_goes_on_as_the_first(tmp_path: Path, zero: int, before: int, after: int) -> None:
    tiny_towers(tmp_path, 9)  # writes the weights from which all start
    training = TrainingSettings(zero_stage=zero)
    undisturbed, _ = trained(before, training, tmp_path)
    torn = max((tmp_path / "checkpoints").glob("00000005-*"))
    shard = max((torn / TAG).glob("*.pt"))  # of the last rank, where there are several
    shard.write_bytes(shard.read_bytes()[:-1])
    resumed, said = trained(after, training, tmp_path)
    assert sorted(resumed) == [3, 4, 5]
    assert [line.split(" is torn: ")[0] for line in said] == [f"checkpoint {torn.name}"]
    np.testing.assert_allclose([resumed[step] for step in resumed], [undisturbed[step] for step in resumed], rtol=1e-5)
