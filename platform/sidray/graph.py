"""From a recipe to its steps. Every step states what its result depends on; equal steps of two variants are one step.

    graph = build_graph(recipe);  store.ensure(graph["index"])

Roles: catalogue, text-weights, image-weights, text-cache, image-cache, stage-NAME, after-NAME, pretrained-towers,
pretrained (vectors after the last pretraining stage), tokenizers, sids, negatives, final-towers, embed (final vectors),
table, index.
"""

from __future__ import annotations

from sidray import storage
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.graph_base import Builder, Graph
from sidray.graph_notes import NotesBuilder
from sidray.graph_towers import TowersBuilder
from sidray.recipe import Recipe

CONTINUED = (  # roles of a finished run that another one reads
    "text-weights",
    "image-weights",
    "pretrained-towers",
    "pretrained",
    "tokenizers",
    "final-towers",
    "note-model",
)


def build_graph(recipe: Recipe) -> Graph:
    """The steps of a recipe. UserError when init_from is no finished run."""
    previous = _continued(recipe) if recipe.init_from else None
    kind: type[Builder] = TowersBuilder if recipe.model.note is None else NotesBuilder
    return Graph(recipe, kind(recipe, previous).build())


def _continued(recipe: Recipe) -> Graph:
    """What init_from names, as that run has it."""
    run = RunFolder.open(recipe.init_from)
    if run.root != storage.absolute(recipe.runs.root):
        problem = f"init_from={recipe.init_from} lies in another store than runs.root={recipe.runs.root}"
        raise UserError(problem, f"set runs.root={run.root}: a run reads the steps of the one that it continues")
    if (run.recipe.model.note is None) != (recipe.model.note is None):
        raise UserError(f"init_from={recipe.init_from}: one of the two has model.note", "continue a run of its kind")
    return Graph(run.recipe, {role: run.step(role) for role in CONTINUED if role in run.steps})
