"""`sidray run`: a recipe and its variants from raw tables to a searchable index and a report.

    run = run_recipe("smgr-pictograms", ["training.workers=1"]);  print(run.table)

Run folder: <root>/runs/<recipe>-<hash>/ with recipe.yaml, steps.json and report/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from sidray import storage
from sidray.cluster import ray_cluster
from sidray.graph import build_graph
from sidray.graph_base import Graph
from sidray.recipe import Recipe, load_recipe, run_folder_name
from sidray.report_clicks import ClicksReport
from sidray.report_pairs import PairsReport
from sidray.steps import Store, in_order

Say = Callable[[str], None]
Graphs = Mapping[str, Sequence[Graph]]  # the recipe (first) and its variants by label, each once for every seed


@dataclass(frozen=True)
class FinishedRun:
    """`folder`: URI of the run; `table`: the results as text; `seconds`: how long this call took."""

    folder: str
    table: str
    seconds: float


def run_recipe(name: str, overrides: list[str], say: Say = print) -> FinishedRun:
    """Computes whatever of the recipe is not done yet. UserError for anything the user can mend."""
    started = time.time()
    recipe, variants, values = load_recipe(name, overrides)
    store = Store(recipe.runs.root, say)
    folder = storage.join(store.root, "runs", run_folder_name(values))
    graphs = seeded_graphs({recipe.label: recipe, **variants})
    report = _report(recipe, graphs)
    steps = [graphs[recipe.label][0]["index"], *report.steps()]
    todo = [step for step in in_order({str(n): step for n, step in enumerate(steps)}) if store.manifest(step) is None]
    if todo:
        say(f"{len(todo)} steps to compute in {store.root}")
        with ray_cluster():
            for step in steps:
                store.ensure(step)
    _write_run(folder, values, graphs, store)
    return FinishedRun(folder, report.write(store, folder), time.time() - started)


def seeded_graphs(recipes: Mapping[str, Recipe]) -> Graphs:
    """The graphs of each recipe, once for every seed."""
    return {label: [build_graph(each) for each in recipe.with_seeds()] for label, recipe in recipes.items()}


def _report(recipe: Recipe, graphs: Graphs) -> ClicksReport | PairsReport:
    if recipe.model.note is not None:
        return PairsReport(recipe, graphs)
    return ClicksReport(recipe, graphs)


def _write_run(folder: str, values: dict[str, object], graphs: Graphs, store: Store) -> None:
    """recipe.yaml and steps.json: every role of every variant (of its first seed) and the step folder that it is."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(folder, "recipe.yaml"), text.encode())
    steps = {name: {role: step.folder for role, step in each[0].steps.items()} for name, each in graphs.items()}
    storage.write_json(storage.join(folder, "steps.json"), steps)
