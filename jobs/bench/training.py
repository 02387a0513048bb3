"""Training through sidray (Ray Train, DeepSpeed, Ray Data, 1 worker) against a bare PyTorch loop over ready tensors.

    python jobs/bench/training.py smgr-pictograms --stage query2item --steps 60 [a.b=c ...]

Same model, same batches, same torch threads. In bf16 there are two bare loops: autocast over fp32 weights, which is
what DeepSpeed's bf16 computes (fp32 masters), and weights and optimiser wholly in bf16, which is cheaper and trains
otherwise. Each runs before and after, its mean counts. One JSON line.
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
from sidray.models.sources import sources_of
from sidray.recipe import Recipe, load_recipe
from sidray.steps import Store, Work
from sidray.tasks.views import Batch
from sidray.training.module import StageModule
from sidray.training.schedule import Schedule
from sidray.training.worker import StageJob


def bare_samples_per_second(job: StageJob, batches: Sequence[Batch], batch_size: int, pure_bf16: bool) -> float:
    """A plain loop over ready batches: forward, backward, clip, AdamW. A sample is a row of the plan: click or pair."""
    module = StageModule(job.sources.model(job.model, job.sid_count), job.stage)
    if pure_bf16:
        module.bfloat16()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=job.training.precision == "bf16" and not pure_bf16)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=job.stage.lr)
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        if number == 1:
            started = time.perf_counter()  # the first step is warm-up, as it is in the stage's own clock
        with autocast:
            loss, _ = module(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.training.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return batch_size * (len(batches) - 1) / (time.perf_counter() - started)


def measure(recipe: Recipe, name: str, steps: int) -> dict[str, Any]:
    training = recipe.training.model_copy(update={"workers": 1})
    stages = [s.model_copy(update={"steps": steps, "validations": 1}) if s.name == name else s for s in recipe.stages]
    recipe = recipe.model_copy(update={"stages": stages, "training": training})
    graph, store = build_graph(recipe), Store(recipe.runs.root)
    step = graph[f"stage-{name}"]
    inputs = {role: store.ensure(needed) for role, needed in step.inputs.items() if role != "start"}
    stage = next(stage for stage in recipe.stages if stage.name == name)
    job = StageJob(
        stage,
        training,
        recipe.model,
        sources_of(inputs, None),
        sid_count=0,
        tokens=recipe.tokenizer,
        start=None,
        output="",
    )
    threads = training.threads or 1
    torch.set_num_threads(threads)
    schedule = Schedule(stage, Catalogue.open(job.sources.catalogue), workers=1)
    fetch = job.fetch(schedule.rows)
    batches = [fetch(rows) for rows in schedule.positions(0, 0)]
    kinds = {"bare": False, "pure bf16": True} if training.precision == "bf16" else {"bare": False}
    before = {name: bare_samples_per_second(job, batches, schedule.batch_size, pure) for name, pure in kinds.items()}
    with tempfile.TemporaryDirectory() as folder:
        summary = step.run(Work(folder, inputs))
    after = {name: bare_samples_per_second(job, batches, schedule.batch_size, pure) for name, pure in kinds.items()}
    bare = {name: (before[name] + after[name]) / 2 for name in kinds}
    ours = float(summary["samples/s"])
    return {
        "bench": "training",
        "recipe": recipe.name,
        "stage": name,
        "steps": steps,
        "threads": threads,
        "precision": training.precision,
        "sidray samples/s": round(ours, 1),
        **{f"{name} samples/s": round(rate, 1) for name, rate in bare.items()},
        **{f"ratio to {name}": round(ours / rate, 3) for name, rate in bare.items()},
        "data wait": summary["data wait"],
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
