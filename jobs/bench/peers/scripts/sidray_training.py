"""Our arm of the training: one stage of a recipe through Ray Train and DeepSpeed, as `sidray run` computes it.

python sidray_training.py RECIPE.yaml --warm 20 [--prepare]   # --prepare: the steps before it alone
"""

from __future__ import annotations

import argparse
import json
import tempfile

from sidray.cluster import prepare_environment, ray_cluster
from sidray.graph import build_graph
from sidray.recipe import load_recipe
from sidray.steps import Store, Work
from sidray.training.record import Record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--warm", type=int, required=True, help="steps that are not timed")
    parser.add_argument("--prepare", action="store_true")
    given = parser.parse_args()
    prepare_environment()
    recipe, _, _ = load_recipe(given.recipe, [])
    store = Store(recipe.runs.root, say=lambda line: None)
    step = build_graph(recipe)["stage-query2text"]
    with ray_cluster(), tempfile.TemporaryDirectory() as folder:
        inputs = {role: store.ensure(needed) for role, needed in step.inputs.items()}
        if given.prepare:
            return
        step.run(Work(folder, inputs))
        record = Record.read(folder)
    rate, waited = record.rates(record.step - given.warm)
    loss = sum(row["loss"] for row in record.steps[-10:]) / 10
    print(json.dumps({"samples/s": rate, "last loss": loss, "data wait": waited}))


if __name__ == "__main__":
    main()
