"""The bodies of the HTTP API, as clients see them in /openapi.json.

A wrong JSON type is malformed (400), an impossible value or an unknown key is not (422): problems.py tells them apart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_K = 1000
MAX_DIMENSION = 65_536
MAX_LIST = 1000  # entries of partition, exclude and with_fields
MAX_HISTORY = 50  # item_ids of one /v1/similar, each a search of its own


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer and no answer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("string_unicode", "the text has a lone surrogate, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[Text, Field(max_length=1024)]
Names = Annotated[list[Name], Field(max_length=MAX_LIST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Base of everything a client sends: no type is coerced and no unknown key passes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Scope(Body):
    """What every request for hits may say: where, how many, and how fresh."""

    partition: Name | Names | None = Field(None, description="search only here; absent or empty: everywhere")
    k: Annotated[int, Field(ge=1, le=MAX_K)] = Field(10, description="how many hits")
    with_fields: Names = Field(default_factory=list, description="further columns of each hit")
    min_table_version: Annotated[int, Field(ge=0)] = Field(
        0, description="answer from at least this table version, as a write returned it; 503 if that takes over 2 s"
    )

    @property
    def partitions(self) -> list[str] | None:
        """None: everywhere."""
        if isinstance(self.partition, list):
            return None if "" in self.partition else self.partition
        return [self.partition] if self.partition else None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.partition == []:
            raise PydanticCustomError(
                "empty_partition", "partition is an empty list; leave it out to search everywhere"
            )
        return self


class SearchRequest(Scope):
    """Exactly one of `vector`, or `query` and/or `image`. An empty query or partition counts as absent."""

    query: Text | None = Field(None, description="what to search for", examples=["noodle soup"])
    image: str | None = Field(None, description="a JPEG, PNG or WebP picture: base64 or a data URL")
    vector: Annotated[list[Finite], Field(min_length=1, max_length=MAX_DIMENSION)] | None = Field(
        None, description="a query vector of the primary's model, or of the run's in X-Sidray-Run"
    )
    exclude: Names = Field(default_factory=list, description="item_ids that are left out")

    @property
    def text(self) -> str:
        return self.query if self.query and self.query.strip() else ""

    @model_validator(mode="after")
    def _one_query(self) -> SearchRequest:
        raw = self.vector is not None
        if raw and (self.text or self.image is not None):
            raise PydanticCustomError("ambiguous_query", "give either vector, or query and/or image")
        if not raw and not self.text and self.image is None:
            raise PydanticCustomError("empty_query", "there is nothing to search for: give query, image or vector")
        return self


class SimilarRequest(Scope):
    """Neighbours of what a user saw last, the most recent first."""

    item_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_HISTORY)]
    exclude_seen: bool = Field(True, description="whether these items themselves are left out")
    recency: float = Field(
        1.0, gt=0, le=1, description="weight of each item relative to the one seen after it; 1: all count alike"
    )


class Hit(BaseModel):
    item_id: str
    score: float = Field(description="cosine of query and item, of similar items times the weight of the item seen")
    title: str
    partition: str
    fields: dict[str, Any]


class IndexKey(BaseModel):
    """What answered: the run, its model's key, the index generation, and the table version up to which it knows all."""

    run: str
    model_key: str
    generation: str
    table_version: int


class TookMs(BaseModel):
    """Milliseconds; `embed` and `recall` include their queues."""

    total: float
    embed: float
    recall: float


class SearchResponse(BaseModel):
    hits: list[Hit]
    index: IndexKey
    took_ms: TookMs


class SimilarResponse(SearchResponse):
    unknown: list[str] = Field(description="item_ids that the index does not have")


class Model(BaseModel):
    """A served model, in the shape of OpenAI's list. Longer queries are cut to `max_query_tokens`."""

    id: str
    run: str
    object: Literal["model"] = "model"
    owned_by: Literal["sidray"] = "sidray"
    dimension: int
    max_query_tokens: int
    images: bool = Field(description="whether it reads pictures")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Index(IndexKey):
    """`fields`: what with_fields may name; `delta`: items written since the generation was built; `lag_seconds`: the
    age of what the answering replica knows of the table."""

    dimension: int
    items: int
    partitions: int
    fields: list[str]
    delta: int
    lag_seconds: float


class Status(BaseModel):
    status: str


class Error(BaseModel):
    type: str
    code: str
    message: str
    param: str | None


class ErrorBody(BaseModel):
    error: Error
