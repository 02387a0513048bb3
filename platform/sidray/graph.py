"""From a recipe to its steps. Every step states what its result depends on; equal steps of two variants are one step.

    graph = build_graph(recipe);  store.ensure(graph["index"])

Roles: catalogue, text-weights, image-weights, text-cache, image-cache, stage-NAME, after-NAME, pretrained-towers,
pretrained (vectors after the last pretraining stage), tokenizers, sids, negatives, final-towers, embed (final vectors),
table, index.
"""

from __future__ import annotations

from sidray.finished import RunFolder
from sidray.graph_base import Builder, Graph
from sidray.graph_notes import NotesBuilder
from sidray.graph_towers import TowersBuilder
from sidray.recipe import Recipe


def build_graph(recipe: Recipe) -> Graph:
    """The steps of a recipe. UserError when init_from is no finished run."""
    previous = build_graph(RunFolder.open(recipe.init_from).recipe.with_seeds()[0]) if recipe.init_from else None
    kind: type[Builder] = TowersBuilder if recipe.model.note is None else NotesBuilder
    return Graph(recipe, kind(recipe, previous).build())
