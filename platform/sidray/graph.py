"""From a recipe to its steps. Every step states what its result depends on; equal steps of two variants are one step.

    graph = build_graph(recipe);  store.ensure(graph["index"])

Roles: catalogue, text-weights, image-weights, text-cache, image-cache, stage-NAME, pretrained (vectors after the last
pretraining stage), tokenizers, sids, negatives, embed (final vectors), table, index.
"""

from __future__ import annotations

import yaml

from sidray import storage
from sidray.errors import UserError
from sidray.graph_base import Builder, Graph
from sidray.graph_notes import NotesBuilder
from sidray.graph_towers import TowersBuilder
from sidray.recipe import Recipe, from_values


def build_graph(recipe: Recipe) -> Graph:
    """The steps of a recipe. UserError when init_from is no finished run."""
    previous = build_graph(load_run(recipe.init_from)[0].with_seeds()[0]) if recipe.init_from else None
    kind: type[Builder] = TowersBuilder if recipe.model.note is None else NotesBuilder
    return Graph(recipe, kind(recipe, previous).build())


def load_run(run: str) -> tuple[Recipe, dict[str, Recipe], str]:
    """Recipe, variants and store root of a run folder."""
    uri = storage.absolute(run)
    path = storage.join(uri, "recipe.yaml")
    if not storage.exists(path):
        raise UserError(f"{run} is no run: it has no recipe.yaml", "give the folder that `sidray run` printed")
    recipe, variants, _ = from_values(yaml.safe_load(storage.read_bytes(path)), path)
    return recipe, variants, uri.rsplit("/", 2)[0]
