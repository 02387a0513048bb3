"""Which rows a run's table has, and the evaluation step behind each.

The recipe itself, where its recall is lost on the way (pretrained towers with pictures, RQ-VAE reconstructions), stages
named in `evaluation.after`, and the variants.
"""

from __future__ import annotations

from functools import partial

from sidray.cluster import on_cluster
from sidray.evaluation.clicks import Representation
from sidray.evaluation.run import VERSION, evaluate_baselines, evaluate_clicks
from sidray.evaluation.settings import EvaluationSettings
from sidray.graph_base import Graph, dump
from sidray.steps import Step


def _step(settings: EvaluationSettings, kind: Representation, inputs: dict[str, Step]) -> Step:
    config = {"settings": dump(settings, {"split", "high_frequency"}), "kind": kind}
    return Step("evaluate", partial(on_cluster, evaluate_clicks, settings, kind), config, VERSION, inputs)


def baselines(graph: Graph) -> Step:
    settings = graph.recipe.evaluation
    config = dump(settings, {"split", "high_frequency"})
    run = partial(on_cluster, evaluate_baselines, settings)
    return Step("baselines", run, config, VERSION, {"catalogue": graph["catalogue"]})


def rows_of(label: str, graph: Graph) -> dict[str, Step]:
    """Row label -> evaluation step, the recipe's own row last."""
    settings = graph.recipe.evaluation
    rows: dict[str, Step] = {}
    for name in (name for name in settings.after if f"after-{name}" in graph):  # a variant may lack the stage
        inputs = {"catalogue": graph["catalogue"], "embed": graph[f"after-{name}"]}
        rows[f"{label}: after {name}"] = _step(settings, settings.after[name], inputs)
    if graph.recipe.sid_stages:
        inputs = {"catalogue": graph["catalogue"], "embed": graph["pretrained"]}
        rows[f"{label}: with pictures"] = _step(settings, "vector", inputs)
        rows[f"{label}: reconstructed"] = _step(settings, "vector", inputs | {"sids": graph["sids"]})
    rows[label] = _step(settings, "vector", {"catalogue": graph["catalogue"], "embed": graph["embed"]})
    return rows
