"""A stage from the driver's side: Ray Train on the worker loop, the best checkpoint kept, history and a picture.

Output: towers.safetensors (best on validation), history.json, stage.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

from sidray import storage
from sidray.cluster import preflight
from sidray.errors import root_user_error
from sidray.steps import Summary, Work
from sidray.training.plots import plot_stage
from sidray.training.worker import TOWERS, Progress, StageJob, train_stage

VERSION = 1  # of a stage's result: raise it when the same settings would give other weights


def run_stage(job: StageJob, work: Work) -> Summary:
    """Trains the stage into `work.output`; a killed attempt goes on from its last checkpoint."""
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = job.training
    preflight(training)
    resources = {"CPU": training.cpus_per_worker, "GPU": training.gpus_per_worker}
    filesystem, path = storage.open_uri(work.path("train"))
    trainer = TorchTrainer(
        cast(Any, train_stage),  # Ray passes any picklable value on, but its types say dict
        train_loop_config=cast(Any, job),
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=RunConfig(
            name=job.stage.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="score"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        mistake = root_user_error(error)
        if mistake is not None:
            raise mistake from error
        raise
    return _finish(job, work, result)


def _finish(job: StageJob, work: Work, result: Any) -> Summary:
    """Keeps the best towers and the whole history; the engine's checkpoints are dropped."""
    best = result.get_best_checkpoint("score", "max")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with best.as_directory() as checkpoint:
            storage.upload(Path(checkpoint) / TOWERS, work.path(TOWERS))
        with result.checkpoint.as_directory() as checkpoint:
            progress = Progress.load(Path(checkpoint))
        storage.write_json(work.path("history.json"), progress.__dict__)
        plot_stage(job.stage.name, progress.history, progress.validation, folder / "stage.png")
        storage.upload(folder / "stage.png", work.path("stage.png"))
    storage.delete(work.path("train"))
    return _summary(progress)


def _summary(progress: Progress) -> Summary:
    best = max(progress.validation, key=lambda row: row["score"])
    seconds = max(progress.train_s, 1e-9)
    return {
        "steps": progress.step,
        "best step": int(best["step"]),
        "held-out score": best["score"],
        "samples/s": progress.samples / seconds,
        "data wait": f"{100 * progress.waited_s / seconds:.1f} %",
        "first loss": progress.history[0]["loss"],
        "last loss": progress.history[-1]["loss"],
        "validation": {name: value for name, value in best.items() if name not in {"step", "score"}},
    }
