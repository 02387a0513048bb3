"""Stages from the driver's side: Ray Train on the worker loop, for one stage or for several in a row.

Output of each: towers.safetensors (best on validation), metrics.jsonl, stage.json, stage.png
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidray import storage
from sidray.cluster import preflight
from sidray.errors import root_user_error
from sidray.progress import follow
from sidray.steps import Summary
from sidray.training.plots import plot_stage
from sidray.training.record import Record
from sidray.training.settings import TrainingSettings
from sidray.training.worker import StageJob, train_stages

VERSION = 5  # of a stage's result: raise it when the same settings would give other weights


def run_stages(jobs: Sequence[StageJob], training: TrainingSettings) -> list[Summary]:
    """Trains the stages one after the other in one worker group; a killed attempt resumes from its newest whole
    checkpoint."""
    import ray.train

    preflight(training)
    folder = storage.join(jobs[0].output, "train")
    try:
        with follow(jobs[0].notes(folder)):
            _trainer(jobs, training, folder).fit()
    except ray.train.TrainingFailedError as error:
        raise (root_user_error(error) or error) from error
    summaries = [_finish(job) for job in jobs]
    storage.delete(folder)
    return summaries


def _trainer(jobs: Sequence[StageJob], training: TrainingSettings, folder: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": training.cpus_per_worker, "GPU": training.gpus_per_worker}
    workers = (training.min_workers, training.workers) if training.min_workers else training.workers
    filesystem, path = storage.open_uri(folder)
    return TorchTrainer(
        train_stages,
        train_loop_config={"jobs": list(jobs), "notes": jobs[0].notes(folder)},
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # Ray's types are those of Train V1
            elastic_resize_monitor_interval_s=training.resize_s,  # type: ignore[call-arg]
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=RunConfig(
            name="stages",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=training.max_failures),
        ),
    )


def _finish(job: StageJob) -> Summary:
    """Draws the stage's picture from its record and sums it up."""
    record = Record.read(job.output)
    picture = plot_stage(job.stage.name, record.steps, record.validation)
    storage.write_bytes(storage.join(job.output, "stage.png"), picture)
    best = max(record.validation, key=lambda row: row["score"])
    rate, waited = record.rates()
    held_out = {name: value for name, value in best.items() if name not in {"step", "score"}}
    return {
        "seconds": record.wall_s,
        "steps": record.step,
        "best step": int(best["step"]),
        **({"held-out score": best["score"]} if held_out else {}),
        "samples/s": rate,
        "data wait": f"{100 * waited:.1f} %",
        "first loss": record.steps[0]["loss"],
        "last loss": record.steps[-1]["loss"],
        "validation": held_out,
    }
