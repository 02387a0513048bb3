"""The index on a torch device against the exact reference; on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidray.retrieval import torch_index
from sidray.retrieval.exact import top_k
from sidray.retrieval.index import PartitionedIndex, build
from sidray.retrieval.torch_index import TorchIndex, load_index
from tests.retrieval.test_index import items


def check(folder: Path, device: str) -> None:
    """Partitions a and c would be cut into lists by the FAISS index; here they are exact."""
    rng = np.random.default_rng(0)
    build(items(rng.normal(size=(400, 8)), ["a", "a", "b", "c"] * 100), str(folder), 1, "m", ivf_above=90)
    index = TorchIndex.load(str(folder), threads=1)
    assert index.device.type == device
    codes = np.repeat(np.arange(3), [200, 100, 100])
    query_vecs = rng.normal(size=(21, 8)) * 3
    for asked in (None, ["b"], ["c", "a"], ["a", "b"], []):
        inside = np.isin(codes, [index.partitions.index(name) for name in asked or []]) | (asked is None)
        for k in (1, 10, 150, 1001):
            scores, rows = index.search(query_vecs, k, asked)
            wanted_scores, wanted = top_k(query_vecs, index.vectors, k, inside.astype(int), np.ones(21, int))
            np.testing.assert_array_equal(rows, wanted)
            np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)
            assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_it_equals_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch_index, "_SCORES", 900)  # blocks of a few queries
    monkeypatch.setattr(torch_index, "_BLOCK", 150)
    check(tmp_path, "cpu")
    assert type(load_index(str(tmp_path), threads=1)) is PartitionedIndex


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_it_equals_the_reference_on_a_gpu(tmp_path: Path) -> None:
    check(tmp_path, "cuda")
    assert type(load_index(str(tmp_path), threads=1)) is TorchIndex


def test_an_index_without_items(tmp_path: Path) -> None:
    build(items(np.zeros((0, 4)), []), str(tmp_path), 1, "m")
    scores, rows = TorchIndex.load(str(tmp_path), threads=1).search(np.ones((2, 4)), 3)
    assert rows.tolist() == [[-1] * 3] * 2
    assert (scores == -np.inf).all()


def test_the_index_itself_imports_no_torch() -> None:
    program = "import sys, sidray.retrieval.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.gpu
def test_faiss_finds_on_a_gpu_what_it_finds_on_the_cpu() -> None:
    """The CUDA image's faiss: flat, and IVF with all lists visited."""
    faiss: Any = pytest.importorskip("faiss")
    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        pytest.skip("this faiss sees no GPU")
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(20_000, 32)).astype(np.float32), rng.normal(size=(50, 32)).astype(np.float32)
    for name in ("Flat", "IVF64,Flat"):
        index = faiss.index_factory(32, name, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        if name != "Flat":
            index.nprobe = moved.nprobe = 64
        scores, rows = index.search(queries, 10)
        on_gpu, there = moved.search(queries, 10)
        np.testing.assert_array_equal(there, rows)
        np.testing.assert_allclose(on_gpu, scores, rtol=1e-4)
