"""Training through sidray (Ray Train, DeepSpeed, Ray Data, 1 worker) against a bare PyTorch loop over ready tensors.

    python jobs/bench/training.py smgr-pictograms --stage query2item --steps 60 [a.b=c ...]

Same model, same batches, same device and torch threads. In bf16 there are two bare loops: autocast over fp32 weights,
which is what DeepSpeed's bf16 computes (fp32 masters), and weights and optimiser wholly in bf16, which is cheaper and
trains otherwise. Each runs before and after, its mean counts; the first step, which warms up, counts nowhere. One JSON
line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from sidray.cluster import prepare_environment, ray_cluster
from sidray.data.catalogue import Catalogue
from sidray.graph import build_graph
from sidray.models.inference import inference_device
from sidray.models.sources import sources_of
from sidray.models.towers import Batch
from sidray.recipe import Recipe, load_recipe
from sidray.steps import Store, Work
from sidray.training.module import StageModule
from sidray.training.record import Record
from sidray.training.schedule import Schedule
from sidray.training.worker import StageJob


def bare_samples_per_second(job: StageJob, batches: Sequence[Batch], batch_size: int, pure_bf16: bool) -> float:
    """A plain loop over ready batches: forward, backward, clip, AdamW. A sample is a row of the plan: click or pair."""
    at = inference_device()
    module = StageModule(job.sources.model(job.model, job.sid_count), job.stage).to(at)
    if pure_bf16:
        module.bfloat16()
    autocast = torch.autocast(at.type, torch.bfloat16, enabled=job.training.precision == "bf16" and not pure_bf16)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=job.stage.lr)
    ended = [0.0]
    for batch in batches:
        with autocast:
            loss, _ = module({name: value.to(at, non_blocking=True) for name, value in batch.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.training.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()  # waits for the device, as the stage's own steps do
        ended.append(time.perf_counter())
    return batch_size * (len(batches) - 1) / (ended[-1] - ended[1])


def rates(recipe: Recipe, name: str, threads: int) -> tuple[tuple[float, float], dict[str, float]]:
    """Of sidray: samples/s and the share of time that data was waited for. Of each bare loop: samples/s."""
    graph, store = build_graph(recipe), Store(recipe.runs.root)
    step = graph[f"stage-{name}"]
    inputs = {role: store.ensure(needed) for role, needed in step.inputs.items() if role != "start"}
    stage = next(stage for stage in recipe.stages if stage.name == name)
    sources, training = sources_of(inputs, None), recipe.training
    job = StageJob(stage, training, recipe.model, sources, 0, tokens=recipe.tokenizer, start=None, output="")
    torch.set_num_threads(threads)
    schedule = Schedule(stage, Catalogue.open(job.sources.catalogue), workers=1)
    fetch = job.fetch(schedule.rows)
    batches = [fetch(rows) for rows in schedule.positions(0, 0)]
    kinds = {"bare": False, "pure bf16": True} if training.precision == "bf16" else {"bare": False}
    before = {kind: bare_samples_per_second(job, batches, schedule.batch_size, pure) for kind, pure in kinds.items()}
    with tempfile.TemporaryDirectory() as folder:
        step.run(Work(folder, inputs))
        ours = Record.read(folder).rates(schedule.steps - 1)
    after = {kind: bare_samples_per_second(job, batches, schedule.batch_size, pure) for kind, pure in kinds.items()}
    return ours, {kind: (before[kind] + after[kind]) / 2 for kind in kinds}


def measure(recipe: Recipe, name: str, steps: int) -> dict[str, Any]:
    training = recipe.training.model_copy(update={"workers": 1})
    stages = [s.model_copy(update={"steps": steps, "validations": 1}) if s.name == name else s for s in recipe.stages]
    recipe = recipe.model_copy(update={"stages": stages, "training": training})
    threads = training.threads or 1
    (ours, waited), bare = rates(recipe, name, threads)
    return {
        "bench": "training",
        "recipe": recipe.name,
        "stage": name,
        "steps": steps,
        "threads": threads,
        "precision": training.precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "sidray samples/s": round(ours, 1),
        **{f"{kind} samples/s": round(rate, 1) for kind, rate in bare.items()},
        **{f"ratio to {kind}": round(ours / rate, 3) for kind, rate in bare.items()},
        "data wait": round(waited, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--stage", default="query2item")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_intermixed_args()
    prepare_environment()
    recipe, _, _ = load_recipe(arguments.recipe, arguments.overrides)
    with ray_cluster():
        print(json.dumps(measure(recipe, arguments.stage, arguments.steps)))


if __name__ == "__main__":
    main()
