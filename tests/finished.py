"""What tests read of runs: raw rows of the catalogue, the losses of a stage."""

from __future__ import annotations

import lance
import pyarrow as pa

from sidray import storage
from sidray.finished import RunFolder


def catalogue_rows(run: RunFolder, rows: int) -> pa.Table:
    """The first items, as a user would bring them."""
    dataset = lance.dataset(storage.join(run.output("catalogue"), "items.lance"))
    return dataset.to_table().slice(0, rows).drop_columns(["image_id"])


def losses(history: list[dict[str, float]]) -> list[float]:
    """Step by step; history: Record.steps."""
    return [row["loss"] for row in history]
