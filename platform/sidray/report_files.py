"""What the reports of a run share: when they are written, their files, the pictures that the steps drew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.graph_base import Graph
from sidray.recipe import Recipe
from sidray.steps import Store

TABLE = "table.txt"
PICTURES = ("stage.png", "health.png", "saliency.png")


@dataclass(frozen=True)
class Report:
    """`graphs`: the recipe (first) and its variants by label, each once for every seed."""

    recipe: Recipe
    graphs: Mapping[str, Sequence[Graph]]

    @property
    def firsts(self) -> dict[str, Graph]:
        """Of the first seeds, by variant."""
        return {label: graphs[0] for label, graphs in self.graphs.items()}

    def save(self, store: Store, folder: str, key: str, results: Any, fill: Callable[[Path], str]) -> str:
        """The table as text. `fill` writes a report's files and returns it, unless the folder has one of these results,
        which its results.json has under `key`."""
        report = storage.join(folder, "report")
        saved, text = storage.join(report, "results.json"), storage.join(report, TABLE)
        if storage.exists(text) and storage.exists(saved) and storage.read_json(saved)[key] == results:
            return storage.read_bytes(text).decode()
        with tempfile.TemporaryDirectory() as scratch:
            table = fill(Path(scratch))
            copy_pictures(Path(scratch), self.firsts, store)
            storage.delete(text)
            storage.upload(scratch, report)
            storage.write_bytes(text, table.encode())  # last: without it the report is written again
        return table


def shown(catalogue: Catalogue) -> Callable[[int], tuple[str, bytes | None]]:
    """Title and picture of an item row, as a gallery shows them."""

    def item(row: int) -> tuple[str, bytes | None]:
        values = catalogue.items(np.array([row], np.int64), ["title", "image"]).to_pylist()[0]
        return values["title"], values["image"]

    return item


def copy_pictures(local: Path, graphs: Mapping[str, Graph], store: Store) -> None:
    """Each stage's curves, the codebooks' health and the saliency, under the name of variant and step."""
    for name, graph in graphs.items():
        for role, step in graph.steps.items():
            for picture in PICTURES:
                uri = storage.join(store.output(step), picture) if store.manifest(step) else ""
                if uri and storage.exists(uri) and not role.endswith(("towers", "model")):
                    (local / f"{name}-{role}.png").write_bytes(storage.read_bytes(uri))
