"""The loop of every Ray Train worker: a DeepSpeed engine over the stage's steps, validation, checkpoints, resume.

All ranks save their shard of a checkpoint; a restarted worker group, of whatever size, loads the newest whole one and
reads exactly the rest of the plan.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sidray import storage
from sidray.cluster import DATA_TASK_CPUS
from sidray.data.catalogue import Catalogue
from sidray.data.stream import StepStream
from sidray.errors import UserError
from sidray.models.fetch import Fetch
from sidray.models.mlrm import Mlrm
from sidray.models.note_inputs import NoteFetch
from sidray.models.settings import ModelSettings
from sidray.models.sources import Sources
from sidray.models.towers import Towers
from sidray.models.trained import SID_TOKENS, TrainedModel, load_trained, save_trained
from sidray.progress import Notes
from sidray.tasks.base import Rows
from sidray.tasks.losses import rank, world_size
from sidray.tokenizers.settings import TokenizerSettings
from sidray.training.checkpoint import BEST, Checkpoints, Made, Restored
from sidray.training.engine import full_state, make_engine
from sidray.training.group import averaged, choose_device, takes_part
from sidray.training.metrics import StageMetrics
from sidray.training.module import StageModule, columns_of
from sidray.training.new_tokens import start_sid_tokens, start_standards, start_visual_tokens
from sidray.training.record import SUMMARY, Record
from sidray.training.resume import TAG, is_resharded, resume
from sidray.training.schedule import Schedule
from sidray.training.settings import StageSettings, TrainingSettings
from sidray.training.validation import score_of, validate

TOWERS = "towers.safetensors"
CHECKPOINTS = "checkpoints"  # in the output while the stage runs


@dataclass(frozen=True)
class StageJob:
    """All that a worker needs to know; picklable. `start` is the URI of another stage's towers."""

    stage: StageSettings
    training: TrainingSettings
    model: ModelSettings
    sources: Sources
    sid_count: int
    tokens: TokenizerSettings
    start: str | None
    output: str  # URI of the folder for towers and record

    @staticmethod
    def notes(folder: str) -> str:
        """Where rank 0 notes its progress for the driver."""
        return storage.join(folder, "progress.json")

    def schedule(self, workers: int) -> Schedule:
        return Schedule(self.stage, Catalogue.open(self.sources.catalogue), workers, self.training.batch_unit)

    def fetch(self, rows: Rows, held_out: bool = False) -> Fetch | NoteFetch:
        """`held_out`: of validation, which drops no texts; hard negatives are mined for train clicks alone."""
        stage = self.stage
        if rows == "pairs":
            return NoteFetch(self.sources, self.model, rows, columns_of(stage))
        columns = columns_of(stage) - ({"negatives"} if held_out else set())
        return Fetch(
            self.sources,
            self.model,
            rows,
            columns,
            drop_text=0.0 if held_out else stage.drop_text,
            hard_negatives=stage.hard_negatives if "negatives" in columns else 0,
            seed=stage.draws,
        )


def train_stages(config: Mapping[str, Any]) -> None:
    """One worker's part of the stages `jobs`, one after the other; what an earlier attempt finished is skipped."""
    jobs: Sequence[StageJob] = config["jobs"]
    _set_threads(jobs[0].training)
    choose_device()
    notes = Notes(config["notes"]) if rank() == 0 else None
    say: Callable[[str], object] = notes.say if notes is not None else lambda line: None
    if not takes_part(math.gcd(*(job.schedule(world_size()).batch_size for job in jobs)), say):
        return
    for job in jobs:
        if not storage.exists(storage.join(job.output, SUMMARY)):
            train_stage(job, notes)
        torch.distributed.barrier()  # the next stage reads what rank 0 wrote
        if rank() == 0:
            storage.delete(storage.join(job.output, CHECKPOINTS))


def train_stage(job: StageJob, notes: Notes | None) -> None:
    """Trains from the newest whole checkpoint, or from the start; rank 0 writes the best towers and the record."""
    started = time.perf_counter()

    def say(line: str) -> None:
        if notes is not None:
            notes.say(f"{job.stage.name}: {line}")

    stage, training, schedule = job.stage, job.training, job.schedule(world_size())
    module = StageModule(_start(job), stage, training.chunk)
    made = Made(world_size(), training.zero_stage, schedule.batch_size)
    checkpoints = Checkpoints(storage.join(job.output, CHECKPOINTS), training.keep_checkpoints, made, say)
    with checkpoints.newest() as found:
        universal = found is not None and is_resharded(found)
        rate = job.tokens.token_lr
        engine = make_engine(module, stage, training, schedule.steps, schedule.batch_size, rate, universal)
        record = Record(stage.name, schedule.batch_size) if found is None else _resumed(engine, found)
    if found is not None:
        say(f"goes on from step {record.step} of {schedule.steps} with {world_size()} workers")
    began = started - record.wall_s  # what went before counts
    StageLoop(job, engine, module, schedule, record, checkpoints, notes, began).run()
    checkpoints.close()
    record.wall_s = time.perf_counter() - began
    if rank() == 0:
        storage.copy(checkpoints.towers, storage.join(job.output, TOWERS))
        record.write(job.output)  # last: the stage is finished
    engine.destroy()


def _resumed(engine: Any, found: Restored) -> Record:
    """The engine goes back to the checkpoint; its record."""
    resume(engine, found)
    return Record.read(str(found.folder))


def _start(job: StageJob) -> TrainedModel:
    """The model as the stage begins: initial weights, those of the stage before it, new tokens of the text's size."""
    model = job.sources.model(job.model, job.sid_count)
    loaded: set[str] = set()
    if job.start is not None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_trained(model, storage.local_copy(job.start, folder))
    if isinstance(model, Mlrm) and not loaded:
        fetch = NoteFetch(job.sources, job.model, "items", frozenset({"note"}))
        start_visual_tokens(model, fetch)
        if model.note.standardise:
            start_standards(model, fetch)
    if job.sid_count and not any(name.startswith(SID_TOKENS) for name in loaded):
        start_sid_tokens(cast(Towers, model), cast(Fetch, job.fetch("items")), job.tokens.token_start)
    return model


class StageLoop:
    """The steps of a stage on one worker, with validation and checkpoints between them."""

    def __init__(
        self,
        job: StageJob,
        engine: Any,
        module: StageModule,
        schedule: Schedule,
        record: Record,
        checkpoints: Checkpoints,
        notes: Notes | None,
        began: float,
    ) -> None:
        """`began`: by time.perf_counter."""
        self.began = began
        self.job, self.engine, self.module, self.schedule = job, engine, module, schedule
        self.record, self.checkpoints, self.notes = record, checkpoints, notes
        self.fetch = job.fetch(schedule.rows)
        self.metrics = StageMetrics(job.stage.name, leads=rank() == 0)
        rows = schedule.validation_rows(job.training.valid_rows, rank())
        self.valid = _to(job.fetch(schedule.rows, held_out=True)(rows), engine.device) if len(rows) else {}

    def run(self) -> None:
        record, schedule = self.record, self.schedule
        stops = set(schedule.validation_steps())
        every = self.job.training.checkpoint_every or schedule.steps
        positions = schedule.positions(record.step, rank())
        stream = StepStream(positions, self.fetch, num_cpus=_data_cpus(self.job.training))
        self.metrics.starts(record.step, schedule.steps)
        started, waited = 0.0, 0.0
        for batch in stream:
            if stream.batches == 1:
                started = time.perf_counter()  # the first batch is start-up, not training
            metrics = self._step(batch)
            record.stepped(metrics, time.perf_counter() - started, stream.waited_s - waited)
            self._tell(stream.waited_s)
            if record.step in stops or record.step % every == 0:
                self._save(better=record.step in stops and self._validate())
            started, waited = time.perf_counter(), stream.waited_s

    def _step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean over the ranks of loss and metrics."""
        # Dropout goes by seed, step and rank: a resumed run draws what the undisturbed one would have drawn.
        torch.manual_seed(hash((self.job.stage.draws, self.record.step, rank())))
        lr = max(self.engine.get_lr())
        loss, metrics = self.engine(_to(batch, self.engine.device))
        self.engine.backward(loss)
        self.engine.step()
        found = averaged({"loss": loss.detach(), **metrics})
        if not math.isfinite(found["loss"]):
            stage, step = self.job.stage.name, self.record.step + 1
            raise UserError(f"stage {stage}: the loss of step {step} is not finite", "lower its lr or training.clip")
        return {**found, "lr": lr}

    def _tell(self, waited_s: float) -> None:
        record, schedule = self.record, self.schedule
        local = schedule.batch_size // schedule.workers
        self.metrics.stepped(record.step, local, waited_s, record.steps[-1]["loss"])
        if self.notes is not None:
            self.notes.write(self.job.stage.name, record.step, schedule.steps, record.told())

    def _validate(self) -> bool:
        """All ranks: held-out metrics. Whether the towers are the best so far."""
        local = self.schedule.batch_size // self.schedule.workers
        metrics = validate(self.module, self.valid, local) if self.valid else {}
        # without validation rows the last step counts
        score = score_of(metrics, self.module.weights) if metrics else float(self.record.step)
        return self.record.validated(score, metrics)

    def _save(self, better: bool) -> None:
        """All ranks: a checkpoint to resume from, with the towers when they are the best so far."""
        state = full_state(self.module.model, self.engine.optimizer) if better else {}
        self.record.wall_s = time.perf_counter() - self.began
        with self.checkpoints.writing(self.record.step) as folder:
            self.engine.save_checkpoint(str(folder), tag=TAG)  # every rank writes its shard
            if rank() == 0:
                self.record.write(str(folder))
                self.record.write_lines(self.job.output)
                if better:
                    save_trained(state, folder.with_suffix(BEST))


def _set_threads(training: TrainingSettings) -> None:
    """Ray gives an actor OMP_NUM_THREADS=1: torch's threads are set here, explicitly."""
    torch.set_num_threads(training.threads or max(1, int(training.cpus_per_worker)))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _data_cpus(training: TrainingSettings) -> float:
    """Of each data task. Elastic workers may take every CPU of a cluster that shrank: then its tasks share theirs, for
    else both would wait for each other for ever."""
    import ray.train

    workers = ray.train.get_context().get_world_size()
    left = ray.cluster_resources().get("CPU", 0.0) - workers * training.cpus_per_worker
    return DATA_TASK_CPUS if left >= DATA_TASK_CPUS else 0.0


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
