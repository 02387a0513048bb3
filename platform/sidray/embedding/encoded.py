"""What a finished run's model answers, whichever kind it is: SMGR's towers (runtime.py) or an MLRM (note_runtime.py).

model = load_model(RunFolder.open(run));  model.queries(["noodle soup"])   # [1, dimension], unit length
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from sidray.finished import RunFolder

Item = Mapping[str, Any]  # title, image (bytes or None) and the recipe's text fields
Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Encoded:
    """vectors [n, dimension] float32 of unit length, and each item's SID tokens ([] in a run without SIDs)."""

    vectors: Vectors
    sids: list[list[int]]


class ServedModel(Protocol):
    """`reads_text`, `reads_pictures`: whether a text, a picture alone can be a query."""

    model_key: str
    reads_text: bool
    reads_pictures: bool

    @property
    def dimension(self) -> int: ...
    @property
    def tokenizer(self) -> Any: ...
    def queries(self, texts: Sequence[str]) -> Vectors: ...
    def tokenised_queries(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encoded_queries(self, ids: Sequence[Sequence[int]]) -> Vectors: ...
    def pictures(self, images: Sequence[bytes]) -> Vectors: ...
    def items(self, items: Sequence[Item]) -> Encoded: ...


def load_model(run: RunFolder) -> ServedModel:
    """The model of a run, on the GPU where there is one."""
    if run.recipe.model.note is not None:
        from sidray.embedding.note_runtime import NoteModel

        return NoteModel(run)
    from sidray.embedding.runtime import RunModel

    return RunModel.load(run)


def unit(value: torch.Tensor) -> Vectors:
    """Rows of unit length."""
    return np.asarray(F.normalize(value.float(), dim=-1).cpu().numpy(), np.float32)
