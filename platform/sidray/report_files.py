"""What every report of a run has: its table as text, and the pictures that its steps drew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sidray import storage
from sidray.graph_base import Graph
from sidray.steps import Store

TABLE = "table.txt"
PICTURES = ("stage.png", "health.png", "saliency.png")


def copy_pictures(local: Path, graphs: Mapping[str, Graph], store: Store) -> None:
    """Each stage's curves, the codebooks' health and the saliency, under the name of variant and step."""
    for name, graph in graphs.items():
        for role, step in graph.steps.items():
            for picture in PICTURES:
                uri = storage.join(store.output(step), picture) if store.manifest(step) else ""
                if uri and storage.exists(uri) and not role.endswith(("towers", "model")):
                    (local / f"{name}-{role}.png").write_bytes(storage.read_bytes(uri))
