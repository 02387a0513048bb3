"""The index with its vectors on a GPU: every partition is searched exactly there, with one product and one top-k.

    index = load_index(folder, threads=1)  # a TorchIndex where this process has a GPU, else a PartitionedIndex

It needs torch alone, where faiss-gpu needs the libraries of CUDA 12. Only a replica with a GPU should import this
module: the others start lighter without torch.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from sidray.retrieval.coarse import Lists
from sidray.retrieval.exact import Floats, Ints
from sidray.retrieval.index import Manifest, PartitionedIndex, Span

_SCORES = 2**28  # held at once: 1 GiB
_BLOCK = 65_536  # rows copied to the device at once


def load_index(folder: str, threads: int) -> PartitionedIndex:
    """`PartitionedIndex.load`, of a TorchIndex where CUDA is available to this process."""
    kind = TorchIndex if torch.cuda.is_available() else PartitionedIndex
    return kind.load(folder, threads)


class TorchIndex(PartitionedIndex):
    """The interface of PartitionedIndex; `device`: the GPU, or the CPU where there is none. Of equal scores any row
    may come first."""

    def __init__(
        self, manifest: Manifest, vectors: Floats, lists: dict[Span, Lists], items: pa.Table, by_id: Ints, threads: int
    ) -> None:
        super().__init__(manifest, vectors, {}, items, by_id, threads)  # no lists: all is exact, all spans are joined
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._resident = torch.empty(vectors.shape, device=self.device)  # [N, d]
        for start in range(0, len(vectors), _BLOCK):
            self._resident[start : start + _BLOCK] = torch.tensor(self._plain[start : start + _BLOCK])

    @torch.inference_mode()
    def _search_span(self, queries: Floats, span: Span, k: int, spare: int, exact: bool) -> tuple[Floats, Ints]:
        low, high = span
        inside = self._resident[low:high].T  # [d, n]
        blocks = torch.split(torch.from_numpy(queries).to(self.device), max(1, _SCORES // (high - low)))
        best = [torch.topk(block @ inside, min(k + spare, high - low)) for block in blocks]
        scores, rows = (torch.cat([pair[i] for pair in best]).cpu().numpy() for i in (0, 1))
        return scores, np.asarray(rows + low)
