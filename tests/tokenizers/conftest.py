"""Small data for the tokenizer tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mixture(count: int, width: int, clusters: int, seed: int = 0) -> np.ndarray:
    """float32 [count, width]: gaussian clusters whose centres lie in a 4-dimensional subspace, and a little noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 4)) @ rng.normal(size=(4, width))
    rows = centres[rng.integers(clusters, size=count)] + 0.1 * rng.normal(size=(count, width))
    return rows.astype(np.float32)
