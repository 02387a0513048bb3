"""`sidray run`: a recipe and its variants from raw tables to a searchable index and a report.

    run = run_recipe("smgr-pictograms", ["training.workers=1"]);  print(run.table)

Run folder: <root>/runs/<recipe>-<hash>/ with recipe.yaml, steps.json and report/.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from sidray import storage
from sidray.cluster import ray_cluster
from sidray.data.catalogue import Catalogue
from sidray.evaluation.clicks import Clicks, Vectors
from sidray.evaluation.gallery import GalleryQuery, choose, write_gallery
from sidray.evaluation.protocol import ALL_CLICKS, Result, load_ranks
from sidray.evaluation.report import table_text, write_report
from sidray.evaluation.run import RESULT
from sidray.evaluation.significance import Comparison, compare
from sidray.graph import Graph, build_graph
from sidray.graph_evaluation import baselines, rows_of
from sidray.recipe import Recipe, load_recipe, run_folder_name
from sidray.steps import Step, Store, in_order

Say = Callable[[str], None]


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
    graphs = {recipe.label: build_graph(recipe)} | {label: build_graph(each) for label, each in variants.items()}
    base = baselines(graphs[recipe.label])
    rows = {label: step for name, graph in graphs.items() for label, step in rows_of(name, graph).items()}
    index = graphs[recipe.label]["index"]
    todo = [step for step in in_order({**rows, "index": index, "baselines": base}) if store.manifest(step) is None]
    if todo:
        say(f"{len(todo)} steps to compute in {store.root}")
        with ray_cluster():
            for step in (index, base, *rows.values()):
                store.ensure(step)
    _write_run(folder, values, graphs, store)
    outputs = _outputs(store, base, rows)
    results = {name: storage.read_json(f"{uri}.json") for name, uri in outputs.items()}
    _report(folder, recipe, graphs, store, results, outputs)
    return FinishedRun(folder, table_text(results), time.time() - started)


def _write_run(folder: str, values: dict[str, object], graphs: dict[str, Graph], store: Store) -> None:
    """recipe.yaml and steps.json: every role of every variant and the step folder that it is."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(folder, "recipe.yaml"), text.encode())
    steps = {name: {role: step.folder for role, step in graph.steps.items()} for name, graph in graphs.items()}
    storage.write_json(storage.join(folder, "steps.json"), steps)


def _outputs(store: Store, base: Step, rows: dict[str, Step]) -> dict[str, str]:
    """Row of the table -> where its result (.json) and its ranks by click (.parquet) lie."""
    beside = store.output(base)
    outputs = {name: storage.join(beside, name) for name in ("popularity", "BM25")}
    outputs |= {row: storage.join(store.output(step), RESULT) for row, step in rows.items()}
    return outputs | {"oracle": storage.join(beside, "oracle")}


def _report(
    folder: str,
    recipe: Recipe,
    graphs: dict[str, Graph],
    store: Store,
    results: dict[str, Result],
    outputs: dict[str, str],
) -> None:
    """Written unless there is one of these results already."""
    report = storage.join(folder, "report")
    saved = storage.join(report, "results.json")
    if storage.exists(saved) and storage.read_json(saved)["results"] == results:
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch)
        several = results[recipe.label]["rows"][ALL_CLICKS]["queries"] > 1  # what is resampled
        write_report(results, local, comparisons=_comparisons(recipe.label, outputs) if several else None)
        _gallery(local / "gallery.html", recipe, graphs, store)
        _copy_pictures(local, graphs, store)
        storage.upload(local, report)


def _comparisons(label: str, outputs: dict[str, str]) -> dict[str, Comparison]:
    """The recipe's own row against every other one but the ceiling, click by click."""
    own = load_ranks(f"{outputs[label]}.parquet")
    others = {name: uri for name, uri in outputs.items() if name not in {label, "oracle"}}
    return {f"{label} against {name}": compare(own, load_ranks(f"{uri}.parquet")) for name, uri in others.items()}


def _gallery(path: Path, recipe: Recipe, graphs: dict[str, Graph], store: Store) -> None:
    """The first results of every variant for some queries (figure 3)."""
    catalogue = Catalogue.open(store.output(graphs[recipe.label]["catalogue"]))
    clicks = Clicks.of(catalogue, recipe.evaluation.split)
    positions = choose(clicks.table, recipe.evaluation.gallery_queries)
    found = {
        name: clicks.top(*Vectors(store.output(graph["embed"])).load(clicks), positions, recipe.evaluation.gallery_k)
        for name, graph in graphs.items()
    }
    chosen = clicks.table.take(positions).to_pylist()
    queries = [GalleryQuery(row["query"], row["item_row"], row["partition"]) for row in chosen]

    def item(row: int) -> tuple[str, bytes | None]:
        values = catalogue.items(np.array([row], np.int64), ["title", "image"]).to_pylist()[0]
        return values["title"], values["image"]

    write_gallery(path, queries, found, item)


def _copy_pictures(local: Path, graphs: dict[str, Graph], store: Store) -> None:
    """Each stage's curves and the codebooks' health, under the name of variant and step."""
    for name, graph in graphs.items():
        for role, step in graph.steps.items():
            for picture in ("stage.png", "health.png"):
                uri = storage.join(store.output(step), picture) if store.manifest(step) else ""
                if uri and storage.exists(uri) and not role.endswith("towers"):
                    (local / f"{name}-{role}.png").write_bytes(storage.read_bytes(uri))
