"""The bodies of the routes that write: items, events.

A wrong type anywhere refuses the whole request; what is wrong with one item's content rejects that item alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sidray.serving.schemas import Body, Name, Text

MAX_ITEMS = 256
MAX_EVENTS = 1000
MAX_ID_CHARACTERS = 512
MAX_TITLE_CHARACTERS = 8192
MAX_FIELD_CHARACTERS = 65_536

ItemId = Annotated[Text, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]


class Item(Body):
    """A catalogue item as the contract has it; further keys are the text fields that the run was trained with."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Text, Field(max_length=MAX_FIELD_CHARACTERS)] | None]

    item_id: ItemId
    title: Annotated[Text, Field(max_length=MAX_TITLE_CHARACTERS)]
    image: str | None = Field(None, description="a JPEG, PNG or WebP picture: base64 or a data URL")
    partition: Name = ""

    @property
    def fields(self) -> dict[str, str | None]:
        return dict(self.__pydantic_extra__ or {})


class ItemsRequest(Body):
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]

    @model_validator(mode="after")
    def _distinct(self) -> ItemsRequest:
        if len({item.item_id for item in self.items}) < len(self.items):
            raise PydanticCustomError("duplicate_item", "an item_id occurs twice in one request")
        return self


class Rejected(BaseModel):
    item_id: str
    reason: str


class ItemsResponse(BaseModel):
    """`accepted`: items that are durable now, those that had not changed included."""

    accepted: int
    rejected: list[Rejected]
    table_version: int


class Deleted(BaseModel):
    item_id: str
    table_version: int


class StoredItem(BaseModel):
    item_id: str
    title: str
    partition: str
    fields: dict[str, Any]
    table_version: int


class Event(Body):
    """A row of the contract's events: `action` is exposure, click, conversion, ...; `ts` ISO 8601 with an offset."""

    user_id: ItemId
    item_id: ItemId
    action: Annotated[Text, Field(min_length=1, max_length=64)]
    ts: Annotated[datetime, Field(strict=False)]
    query: Annotated[Text, Field(max_length=MAX_TITLE_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def _aware(self) -> Event:
        if self.ts.tzinfo is None:
            raise PydanticCustomError("naive_ts", "ts needs an offset from UTC, such as 2026-01-31T12:00:00Z")
        return self


class EventsRequest(Body):
    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]


class EventsResponse(BaseModel):
    accepted: int
