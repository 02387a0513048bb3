"""The `data:` section of a recipe: where the catalogue comes from and how it is split. Imports nothing heavy.

data: {source: tables, items: s3://shop/items, clicks: s3://shop/clicks.parquet, text_fields: [category]}
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sidray.config import Settings
from sidray.errors import nearest

SPLITS = ("train", "valid", "test")
CONTRACT = {  # the columns of each table that have a meaning; those of items that text_fields names come on top
    "items": ("item_id", "title", "image", "image_uri", "partition"),
    "clicks": ("query", "item_id", "partition", "split", "kind", "ts", "user_id", "hard_negatives"),
    "pairs": ("item_id", "related_id", "split", "score"),
    "events": ("user_id", "item_id", "action", "ts"),
}
RESERVED = (*CONTRACT["items"], "image_id", "")


class CooccurrenceSettings(Settings):
    """How events relate items (cooccurrence.py, NoteLLM-2 section 2.3): which actions are a view and which a click, the
    bounds outside of which a score is an outlier, and how many companions an item keeps."""

    view_actions: tuple[str, ...] = ("exposure", "click", "conversion")
    click_actions: tuple[str, ...] = ("click", "conversion")
    low: float = Field(0.01, ge=0)
    up: float = Field(30.0, gt=0)
    top: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> CooccurrenceSettings:
        if not self.view_actions or not self.click_actions:
            raise ValueError("view_actions and click_actions need an action each")
        if self.low > self.up:
            raise ValueError(f"low={self.low:g} is more than up={self.up:g}")
        return self


class DataSettings(Settings):
    """What a user brings (contract tables) and the rules for reading it."""

    source: Literal["tables", "pictograms", "hm"] = "pictograms"
    items: str = ""  # URIs of contract tables: a Parquet file, a folder of them, or a Lance dataset
    clicks: str = ""
    pairs: str = ""
    events: str = ""
    cooccurrence: CooccurrenceSettings = CooccurrenceSettings()  # makes the pairs where events are given and no pairs
    folder: str = ""  # source hm: the Kaggle folder, or a prepared one with items/, clicks.parquet, ...
    text_fields: list[str] = Field([])  # further text columns of the items that are kept, in the order of the prompt
    columns: dict[str, str] = Field({})  # contract column -> the user's name for it
    max_image_pixels: int = Field(50_000_000, ge=1)
    max_bad_fraction: float = Field(0.05, ge=0, le=1)  # share of quarantined rows of one table that fails the job
    image_size: int = Field(96, ge=16, le=1024)  # pixels; the size at which pictograms are drawn
    limit: int | None = Field(None, ge=1)  # the first N items only, and what refers to them
    seed: int = Field(0, ge=0)
    valid_fraction: float = Field(0.1, ge=0, lt=1)  # used when the clicks or pairs carry no split
    test_fraction: float = Field(0.15, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        given = [name for name in CONTRACT if getattr(self, name)]
        if self.source == "tables" and not self.items:
            raise ValueError("source 'tables' needs items: the URI of the item table")
        if self.source == "hm" and not self.folder:
            raise ValueError("source 'hm' needs folder: the Kaggle folder or a prepared one")
        if self.source != "tables" and given:
            raise ValueError(f"{given[0]} is for source 'tables', and source is {self.source!r}")
        if self.source != "tables" and self.columns:
            raise ValueError(f"columns is for source 'tables', and source is {self.source!r}")
        if self.source != "hm" and self.folder:
            raise ValueError(f"folder is for source 'hm', and source is {self.source!r}")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must leave something to train on (their sum is below 1)")
        self._check_columns()
        return self

    def _check_columns(self) -> None:
        if len(set(self.text_fields)) != len(self.text_fields):
            raise ValueError(f"text_fields names a column twice: {self.text_fields}")
        if reserved := [name for name in self.text_fields if name in RESERVED]:
            raise ValueError(f"text_fields cannot hold {reserved[0]!r}: it is a column of the contract, always kept")
        known = sorted({*self.text_fields}.union(*CONTRACT.values()))
        if unknown := [name for name in self.columns if name not in known]:
            raise ValueError(f"columns renames {unknown[0]!r}{nearest(unknown[0], known)}, which no table has")
