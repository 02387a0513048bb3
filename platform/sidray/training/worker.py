"""The loop of every Ray Train worker: a DeepSpeed engine over the stage's steps, validation, checkpoints, resume.

All ranks save their shard and report the checkpoint together; a restarted worker group loads the last one and reads
exactly the rest of the plan.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.data.stream import StepStream
from sidray.models.fetch import Fetch, Sources
from sidray.models.settings import ModelSettings
from sidray.models.towers import load_trained, save_towers
from sidray.tasks.base import Contrastive
from sidray.tasks.losses import rank, world_size
from sidray.training.engine import full_state, make_engine
from sidray.training.module import StageModule, columns_of
from sidray.training.schedule import Schedule
from sidray.training.settings import StageSettings, TrainingSettings

TOWERS = "towers.safetensors"


@dataclass(frozen=True)
class StageJob:
    """All that a worker needs to know; picklable. `start` is the URI of another stage's towers."""

    stage: StageSettings
    training: TrainingSettings
    model: ModelSettings
    sources: Sources
    sid_count: int
    start: str | None

    def fetch(self, rows: str) -> Fetch:
        stage = self.stage
        return Fetch(
            self.sources,
            self.model,
            rows,
            columns_of(stage),
            drop_text=stage.drop_text,
            hard_negatives=stage.hard_negatives if stage.uses_negatives else 0,
            seed=stage.seed,
        )


@dataclass
class Progress:
    """What survives a restart beside the engine: the step, and the history so far."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    train_s: float = 0.0
    waited_s: float = 0.0
    samples: int = 0

    def save(self, folder: Path) -> None:
        (folder / "progress.json").write_text(json.dumps(self.__dict__))

    @classmethod
    def load(cls, folder: Path) -> Progress:
        return cls(**json.loads((folder / "progress.json").read_text()))


def train_stage(job: StageJob) -> None:
    """One worker's part of the stage. Raises what the engine raises; Ray Train restarts the group on a lost worker."""
    _set_threads(job.training)
    import ray.train

    stage = job.stage
    towers = job.sources.towers(job.model, job.sid_count)
    if job.start is not None:
        with tempfile.TemporaryDirectory() as folder:
            load_trained(towers, storage.local_copy(job.start, folder))
    schedule = Schedule(stage, Catalogue.open(job.sources.catalogue), ray.train.get_context().get_world_size())
    module = StageModule(towers, stage, job.training.chunk)
    engine = make_engine(module, stage, job.training, schedule.steps, schedule.batch_size)
    progress = _restore(engine)
    fetch = job.fetch(schedule.rows)
    valid = _fetch_once(fetch, schedule.validation_rows(job.training.valid_rows, rank()))
    _steps(engine, module, schedule, fetch, valid, progress)


def _steps(
    engine: Any, module: StageModule, schedule: Schedule, fetch: Fetch, valid: dict[str, Tensor], progress: Progress
) -> None:
    stops = set(schedule.validation_steps())
    stream = StepStream(schedule.positions(progress.step, rank()), fetch)
    started, waited = time.perf_counter(), 0.0
    for batch in stream:
        if progress.step == 0 or stream.batches == 1:
            started = time.perf_counter()  # the first batch is start-up, not training
        loss, metrics = engine(_to(batch, engine.device))
        engine.backward(loss)
        engine.step()
        progress.step += 1
        progress.samples += schedule.batch_size
        progress.history.append({"step": progress.step, **_averaged({"loss": loss.detach(), **metrics})})
        if progress.step in stops:
            progress.train_s += time.perf_counter() - started
            progress.waited_s += stream.waited_s - waited
            waited = stream.waited_s
            _validate_and_save(engine, module, schedule, valid, progress)
            started = time.perf_counter()


def _set_threads(training: TrainingSettings) -> None:
    """Ray gives an actor OMP_NUM_THREADS=1: torch's threads are set here, explicitly."""
    torch.set_num_threads(training.threads or max(1, int(training.cpus_per_worker)))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _averaged(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Each metric's mean over the ranks."""
    values = torch.stack([value.float() for value in metrics.values()])
    if world_size() > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(metrics, (values / world_size()).tolist(), strict=True))


def _fetch_once(fetch: Fetch, rows: Any) -> dict[str, Tensor]:
    return fetch(rows) if len(rows) else {}


@torch.no_grad()
def validate(module: StageModule, valid: Mapping[str, Tensor], batch_size: int) -> dict[str, float]:
    """Held-out metrics of every task: contrastive ones over the whole pool of rows, generative ones batch by batch."""
    found: dict[str, float] = {}
    pooled = [task for task in module.tasks if isinstance(task, Contrastive)]
    module.eval()
    chunk, module.chunk = module.chunk, module.chunk or 64
    if pooled:
        found |= _averaged(module.run(valid, pooled)[1])
    rows = len(valid["item_row"])
    for task in module.tasks:
        if task not in pooled:
            parts = [_averaged(module.run(_rows(valid, s, batch_size), [task])[1]) for s in range(0, rows, batch_size)]
            found |= {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    module.chunk = chunk
    module.train()
    return found


def _rows(batch: Mapping[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    """Rows start..start+size of every column; hard negatives have several rows for each."""
    count = len(batch["item_row"])
    out = {}
    for name, value in batch.items():
        times = len(value) // count
        out[name] = value[start * times : (start + size) * times]
    return out


def score_of(module: StageModule, metrics: Mapping[str, float]) -> float:
    """What picks the best checkpoint: mean held-out R@10 of the contrastive tasks, else mean token accuracy."""
    for suffix in ("/R@10", "/token accuracy"):
        values = [value for name, value in metrics.items() if name.endswith(suffix)]
        if values:
            return sum(values) / len(values)
    return 0.0


def _validate_and_save(
    engine: Any, module: StageModule, schedule: Schedule, valid: dict[str, Tensor], progress: Progress
) -> None:
    import ray.train

    metrics: dict[str, float] = {}
    if valid:
        metrics = validate(module, _to(valid, engine.device), schedule.batch_size // schedule.workers)
    score = score_of(module, metrics) if metrics else float(progress.step)
    progress.validation.append({"step": progress.step, "score": score, **metrics})
    state = full_state(module.towers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine.save_checkpoint(str(folder), tag="engine")  # every rank writes its shard
        if rank() == 0:
            save_towers(state, folder / TOWERS)
            progress.save(folder)
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"score": score, "step": progress.step}, checkpoint=checkpoint)


def _restore(engine: Any) -> Progress:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        engine.load_checkpoint(folder, tag="engine")
        return Progress.load(Path(folder))
