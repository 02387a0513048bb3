"""What gateway, embedder and recall hand each other. Light: the gateway imports neither torch nor faiss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidray.serving.schemas import IndexKey

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Refusal:
    """A request that cannot be met. Deployments return it: raised, each one would write a traceback into their logs."""

    status: int
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Embedded:
    """A query vector [dimension] of unit length and the model that made it."""

    vector: Vector
    model_key: str


@dataclass(frozen=True)
class RecallQuery:
    """`model_key`: of the vector, "" for a client's own; `partitions` None: everywhere."""

    vector: Vector
    model_key: str
    k: int
    partitions: list[str] | None
    exclude: list[str]
    fields: list[str]


@dataclass(frozen=True)
class Found:
    """Hits, best first: item_id, score, title, partition, fields."""

    hits: list[dict[str, Any]]
    index: IndexKey
