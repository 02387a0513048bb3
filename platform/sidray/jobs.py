"""What the scripts in jobs/ share: their command line, and the part of a recipe's graph that each computes.

    python jobs/embed.py smgr-pictograms training.workers=2     # main(__doc__, compute(["embed"]))

The jobs share one store: each computes what is not done yet, in any order, on the cluster that the job runs on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sidray.cluster import ray_cluster
from sidray.command import run_command
from sidray.errors import UserError

if TYPE_CHECKING:
    from sidray.graph_base import Graph
    from sidray.steps import Step

Work = Callable[[str, list[str]], None]  # recipe, overrides


def main(description: str | None, work: Work) -> None:
    """Runs a job from its arguments. A user's mistake is printed without a traceback and ends with exit code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a shipped recipe's name or a YAML path")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values of the recipe to replace")
    arguments = parser.parse_args()
    run_command(lambda: work(arguments.recipe, arguments.overrides))


def compute(roles: Sequence[str]) -> Work:
    """A job that computes these roles of a recipe and its variants; a role that none of them has is a UserError."""

    def work(name: str, overrides: list[str]) -> None:
        root, graphs = _graphs(name, overrides)
        steps = [graph[role] for graph in graphs for role in roles if role in graph]
        if not steps:
            raise UserError(
                f"recipe {name} has no {' or '.join(roles)}", "it has no sid_stages; use a recipe with them"
            )
        _ensure(root, steps)

    return work


def pipeline(name: str, overrides: list[str]) -> None:
    """The whole recipe, or what is left of it, with its run folder and report."""
    from sidray.run import run_recipe

    finished = run_recipe(name, overrides)
    print(f"\n{finished.table}\nrun folder: {finished.folder}   ({finished.seconds:.0f} s)")


def _graphs(name: str, overrides: list[str]) -> tuple[str, list[Graph]]:
    """The store's root, and the graphs of the recipe (first) and its variants, each once for every seed."""
    from sidray.recipe import load_recipe

    recipe, variants, _ = load_recipe(name, overrides)  # first: a mistake in it is told before torch is imported
    from sidray.graph import build_graph

    return recipe.runs.root, [build_graph(each) for one in (recipe, *variants.values()) for each in one.with_seeds()]


def _ensure(root: str, steps: Sequence[Step]) -> None:
    from sidray.steps import Store

    store = Store(root)
    todo = [step for step in steps if store.manifest(step) is None]
    if todo:
        with ray_cluster():
            for step in todo:
                store.ensure(step)
    for folder in dict.fromkeys(step.folder for step in steps):
        print(f"done: {store.root}/steps/{folder}")
