"""How this package runs Ray Data: in order, in small blocks, with a bounded buffer."""

from __future__ import annotations

import time
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

BLOCK_BYTES = 2 * 2**20  # small blocks: the first result comes after 2.5 s instead of 12

SHORT_BREATH_S, LONG_BREATH_S, GROWTH = 0.01, 0.1, 1.1


class Pace(ExecutionCallback):
    """Gives Ray Data's scheduling loop a breath at every turn, a longer one each time that results wait for a reader.

    Its wait returns at once while a finished block stands behind a full buffer, so that the loop spins, in the very
    process that trains, and competes for its GIL: 60 % of a core; 9 % with short breaths alone (measured with Ray
    2.60)."""

    def __init__(self) -> None:
        self.breath = SHORT_BREATH_S

    def on_execution_step(self, executor: Any) -> None:
        self.breath = SHORT_BREATH_S if executor._consumer_idling() else min(LONG_BREATH_S, GROWTH * self.breath)
        time.sleep(self.breath)


def calm(dataset: ray.data.Dataset) -> None:
    """Makes the dataset (before any transformation of it) yield rows in order, without Ray's bars and at a calm pace,
    and raise what its tasks raise: Ray's own wrapper keeps the text alone, of a UserError, too.

    Changes the dataset's own copy of the context, nobody else's."""
    context = dataset.context
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Pace]


def in_order(dataset: ray.data.Dataset, buffer_bytes: int) -> None:
    """The same in small blocks, with at most about `buffer_bytes` of results waiting in the object store."""
    calm(dataset)
    context = dataset.context
    context.target_max_block_size = BLOCK_BYTES
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=buffer_bytes)
