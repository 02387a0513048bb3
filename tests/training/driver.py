"""A stage of a finished run computed anew by a driver of its own, which the trials kill.

python -m tests.training.driver RUN ROLE STEP_S overrides...   # at the end prints `output FOLDER`
The stage gets STEPS steps of at least STEP_S seconds. Ray: the cluster at RAY_ADDRESS, else one that it starts.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import yaml

from sidray.cluster import ray_cluster
from sidray.finished import RunFolder
from sidray.graph import build_graph
from sidray.recipe import Recipe
from sidray.steps import Step, Store
from sidray.training import stage as stage_module
from sidray.training import worker
from sidray.training.settings import TrainingSettings

STEPS = 8 * (2 + int(os.environ.get("SIDRAY_KILLS", "1")))  # a kill costs fewer than 8


def longer(recipe: Recipe, role: str, training: dict[str, Any]) -> Step:
    """The step of the role with STEPS steps: a new key, on the same inputs."""

    def each(name: str) -> list[Any]:
        update = {"steps": STEPS, "validations": 4}
        stages = getattr(recipe, name)
        return [s.model_copy(update=update) if f"stage-{s.name}" == role else s for s in stages]

    settings = TrainingSettings.model_validate({**recipe.training.model_dump(), **training})
    stages = {name: each(name) for name in ("stages", "sid_stages")}
    return build_graph(recipe.model_copy(update={"training": settings, **stages}))[role]


def slowed(step_s: float) -> Any:
    """train_stages with steps that take some time, pickled by value."""

    def train(config: dict[str, Any]) -> None:
        averaged = worker.averaged

        def slow(metrics: Any) -> dict[str, float]:
            if "loss" in metrics:
                time.sleep(step_s)
            return averaged(metrics)

        worker.averaged = slow
        worker.train_stages(config)

    return train


def main(run: str, role: str, step_s: str, *overrides: str) -> None:
    folder = RunFolder.open(run)
    training = yaml.safe_load("\n".join(each.replace("=", ": ") for each in overrides)) or {}
    if float(step_s):
        stage_module.train_stages = slowed(float(step_s))
    with ray_cluster():
        print("output", Store(folder.root).ensure(longer(folder.recipe, role, training)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
