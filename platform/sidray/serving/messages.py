"""What gateway, embedder and recall hand each other. Light: the gateway imports neither torch nor faiss."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class RunInfo:
    """What a gateway must know of a run to check requests and to reach its recall (`shards`)."""

    shards: int
    max_pixels: int
    text_fields: tuple[str, ...]


@dataclass(frozen=True)
class Times:
    queue: float = 0.0
    tokenise: float = 0.0
    infer: float = 0.0


@dataclass(frozen=True)
class Embedded:
    """A query vector [dimension] of unit length and the model that made it. `tokens`: that the model read;
    `times`: milliseconds in the queue, of tokenising and of the model, the latter two of the whole batch."""

    vector: Vector
    model_key: str
    tokens: int
    times: Times


@dataclass(frozen=True)
class RecallQuery:
    """`model_key`: of the vector, "" for a client's own; `partitions` None: everywhere."""

    vector: Vector
    model_key: str
    k: int
    partitions: list[str] | None
    exclude: list[str]
    fields: list[str]
    min_table_version: int = 0


@dataclass(frozen=True)
class SimilarQuery:
    """`partitions` None: everywhere; `recency`: weight of each item relative to the one before it; `vectors`: of items
    that the shard which is asked may not have."""

    item_ids: list[str]
    k: int
    partitions: list[str] | None
    exclude_seen: bool
    fields: list[str]
    min_table_version: int = 0
    recency: float = 1.0
    vectors: dict[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Hits, best first: item_id, score, title, partition, fields."""

    hits: list[dict[str, Any]]
    index: IndexKey


@dataclass(frozen=True)
class SimilarFound(Found):
    unknown: list[str]


@dataclass(frozen=True)
class NewItem:
    """An item to write, its picture checked; `fields`: the text fields of the run that it has."""

    item_id: str
    title: str
    partition: str
    image: bytes | None
    fields: dict[str, str | None]


@dataclass(frozen=True)
class EncodedItems:
    """vectors [n, d] of unit length, and each item's SID tokens ([] in a run without SIDs)."""

    vectors: npt.NDArray[np.float32]
    sids: list[list[int]]
    model_key: str
