"""One call per route: what is sent and how its answer is read. Plain values: no I/O, the same for both clients.

call = search("noodle soup", k=5)
call.method, call.path, call.body, call.read(b'{"hits": ...}')     # SearchResponse

A list that is too long for one request becomes several calls, and `merged_*` puts their answers together.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidray.client import rows
from sidray.client.rows import Picture, encode, listed
from sidray.serving.embedding_schemas import MAX_INPUTS, Embedding, EmbeddingsResponse, TextOrImage
from sidray.serving.item_schemas import (
    MAX_EVENTS,
    MAX_ID_CHARACTERS,
    MAX_ITEMS,
    Deleted,
    Event,
    EventsResponse,
    Item,
    ItemsResponse,
    StoredItem,
)
from sidray.serving.schemas import Index, ModelList, SearchResponse, SimilarResponse, Status

T = TypeVar("T")
Vectors = NDArray[np.float32]
Inputs = str | TextOrImage | Iterable[str | TextOrImage | Mapping[str, Any]]
Items = Iterable[Item | Mapping[str, Any]]
Events = Iterable[Event | Mapping[str, Any]]


@dataclass(frozen=True)
class Call(Generic[T]):
    """`path` is percent-encoded; `read` turns the body of a 2xx into the answer, or raises ValueError."""

    method: str
    path: str
    read: Callable[[bytes], T] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)

    @property
    def is_write(self) -> bool:
        """Whether it has the gateway's write_timeout_s: writes and embeddings."""
        return self.method in ("PUT", "DELETE") or self.path in ("/v1/events", "/v1/embeddings")


def search(
    query: str | None,
    image: Picture | None,
    vector: ArrayLike | None,
    partition: str | Sequence[str] | None,
    k: int,
    exclude: Sequence[str],
    with_fields: Sequence[str],
    min_table_version: int,
) -> Call[SearchResponse]:
    """`vector`: [d]. Raises ValueError for another shape, NaN and infinities; OSError for an image that is no file."""
    numbers = None if vector is None else np.asarray(vector, np.float64)  # every float32 as it is
    if numbers is not None and numbers.ndim != 1:
        raise ValueError(f"vector has shape {list(numbers.shape)}; a query vector has one dimension")
    body = {
        "query": query,
        "image": rows.picture(image),
        "vector": None if numbers is None else numbers.tolist(),
        "exclude": listed(exclude) or None,
        **_scope(partition, k, with_fields, min_table_version),
    }
    return Call("POST", "/v1/search", SearchResponse.model_validate_json, encode(_given(body)))


def similar(
    item_ids: str | Sequence[str],
    partition: str | Sequence[str] | None,
    k: int,
    exclude_seen: bool,
    recency: float,
    with_fields: Sequence[str],
    min_table_version: int,
) -> Call[SimilarResponse]:
    body = {
        "item_ids": listed(item_ids),
        "exclude_seen": exclude_seen,
        "recency": None if recency == 1 else recency,
        **_scope(partition, k, with_fields, min_table_version),
    }
    return Call("POST", "/v1/similar", SimilarResponse.model_validate_json, encode(_given(body)))


def embed(inputs: Inputs, model: str, dimensions: int | None) -> Iterator[Call[Vectors]]:
    """Each call answers float32 [inputs of this call, d]."""
    others = _given({"model": model, "encoding_format": "base64", "dimensions": dimensions})
    given: Iterable[str | TextOrImage | Mapping[str, Any]]
    given = [inputs] if isinstance(inputs, str | TextOrImage | Mapping) else inputs
    for body, count in rows.bodies("input", map(rows.input_row, given), MAX_INPUTS, others):
        yield Call("POST", "/v1/embeddings", partial(_vectors, count), body)


def merged_vectors(answers: list[Vectors], dimensions: int | None) -> Vectors:
    """float32 [n, d]; of no inputs [0, dimensions or 0]."""
    return np.concatenate(answers) if answers else np.zeros((0, dimensions or 0), np.float32)


def put_items(items: Items) -> Iterator[Call[ItemsResponse]]:
    """An item_id that comes again begins a new request, so that its last content stays."""
    given = [items] if isinstance(items, Item | Mapping) else items
    for body, _ in rows.bodies("items", map(rows.item_row, given), MAX_ITEMS, {}, key="item_id"):
        yield Call("PUT", "/v1/items", ItemsResponse.model_validate_json, body)


def merged_items(answers: list[ItemsResponse]) -> ItemsResponse:
    return ItemsResponse(
        accepted=sum(answer.accepted for answer in answers),
        rejected=[rejected for answer in answers for rejected in answer.rejected],
        table_version=max((answer.table_version for answer in answers), default=0),
    )


def events(given: Events) -> Iterator[Call[EventsResponse]]:
    given = [given] if isinstance(given, Event | Mapping) else given
    for body, _ in rows.bodies("events", map(rows.event_row, given), MAX_EVENTS, {}):
        yield Call("POST", "/v1/events", EventsResponse.model_validate_json, body)


def merged_events(answers: list[EventsResponse]) -> EventsResponse:
    return EventsResponse(accepted=sum(answer.accepted for answer in answers))


def item(item_id: str) -> Call[StoredItem]:
    return Call("GET", _item_path(item_id), StoredItem.model_validate_json)


def item_image(item_id: str) -> Call[bytes]:
    return Call("GET", _item_path(item_id) + "/image", bytes)


def delete_item(item_id: str) -> Call[Deleted]:
    return Call("DELETE", _item_path(item_id), Deleted.model_validate_json)


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", ModelList.model_validate_json)


def served_model() -> Call[str]:
    """The id of the first model."""
    return Call("GET", "/v1/models", _first_id)


def index() -> Call[Index]:
    return Call("GET", "/v1/index", Index.model_validate_json)


def probe(path: str) -> Call[Status]:
    """/healthz or /readyz."""
    return Call("GET", path, Status.model_validate_json)


def _item_path(item_id: str) -> str:
    """One segment, whatever the id holds. Raises ValueError for an id that no item can have."""
    if not 0 < len(item_id) <= MAX_ID_CHARACTERS:
        raise ValueError(f"an item_id has 1 to {MAX_ID_CHARACTERS} characters, this one {len(item_id):,}")
    segment = quote(item_id, safe="")
    if item_id in (".", ".."):  # would name a folder of the path
        segment = segment.replace(".", "%2E")
    return f"/v1/items/{segment}"


def _scope(
    partition: str | Sequence[str] | None, k: int, with_fields: Sequence[str], min_table_version: int
) -> dict[str, Any]:
    return {
        "partition": partition if partition is None or isinstance(partition, str) else list(partition),
        "k": k,
        "with_fields": listed(with_fields) or None,
        "min_table_version": min_table_version or None,
    }


def _given(body: dict[str, Any]) -> dict[str, Any]:
    """What is left out is left to the service's defaults."""
    return {name: value for name, value in body.items() if value is not None}


def _first_id(body: bytes) -> str:
    models = ModelList.model_validate_json(body).data
    if not models:
        raise ValueError("no model is served")
    return models[0].id


def _vectors(count: int, body: bytes) -> Vectors:
    """float32 [count, d] in the order of the inputs. Raises ValueError for rows that are missing or differ in
    length."""
    data = sorted(EmbeddingsResponse.model_validate_json(body).data, key=lambda row: row.index)
    if [row.index for row in data] != list(range(count)):
        raise ValueError(f"the answer does not have the {count} embeddings asked for")
    return np.stack([_vector(row) for row in data])


def _vector(row: Embedding) -> Vectors:
    """float32 [d]."""
    if isinstance(row.embedding, list):
        return np.asarray(row.embedding, np.float32)
    return np.frombuffer(base64.b64decode(row.embedding, validate=True), "<f4").astype(np.float32)
