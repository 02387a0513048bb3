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
    "clicks": ("query", "item_id", "partition", "split", "kind", "ts", "hard_negatives"),
    "pairs": ("item_id", "related_id", "split", "score"),
    "events": ("user_id", "item_id", "action", "ts"),
}
RESERVED = (*CONTRACT["items"], "image_id", "")
OWN = (  # columns of the item table, and those that stand beside the text fields on their way there
    *("seq", "deleted", "vector", "sids", "content_hash", "model_key", "updated_at", "thumbnail"),
    *("position", "place", "refused", "_reason", "_row", "_unit", "_rowid", "_rowaddr"),
)


class CooccurrenceSettings(Settings):
    """How events relate items where there are events and no pairs (cooccurrence.py, NoteLLM-2 section 2.3)."""

    view_actions: tuple[str, ...] = ("exposure", "click", "conversion")
    """Actions that say that a user saw an item."""
    click_actions: tuple[str, ...] = ("click", "conversion")
    """Actions that say that a user chose it after what was seen before."""
    low: float = Field(0.01, ge=0)
    """Scores below are outliers and give no pair."""
    up: float = Field(30.0, gt=0)
    """Scores above are outliers and give no pair."""
    top: int = Field(3, ge=1)
    """Companions that an item keeps, those with the best scores."""

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
    """`tables`: yours, named below; `pictograms`: the embedded catalogue; `hm`: the H&M articles in `folder`."""
    items: str = ""
    """URI of the item table: a Parquet file, a folder of them, or a Lance dataset."""
    clicks: str = ""
    """URI of the clicks, in one of the same forms."""
    pairs: str = ""
    """URI of the pairs of related items, in one of the same forms."""
    events: str = ""
    """URI of the events, in one of the same forms."""
    cooccurrence: CooccurrenceSettings = CooccurrenceSettings()
    folder: str = ""
    """For `hm`: URI of the Kaggle folder, or of a prepared one with items/, clicks.parquet, ..."""
    text_fields: list[str] = Field([])
    """Text columns of the items that enter the prompt after the title, in this order."""
    columns: dict[str, str] = Field({})
    """Column of the contract -> your table's name for it."""
    max_image_pixels: int = Field(50_000_000, ge=1)
    """Pixels; a larger picture is a bad row."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Share of bad rows of a table above which the run ends."""
    image_size: int = Field(96, ge=16, le=1024)
    """Pixels at which pictograms are drawn, in width and in height."""
    limit: int | None = Field(None, ge=1)
    """Only the first N items, and what refers to them; null: all."""
    seed: int = Field(0, ge=0)
    """Of the hash that splits clicks and pairs without a split and without a time."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the rows held out for validation, where they carry no split."""
    test_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of the rows held out for the test, where they carry no split."""

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
        if own := [name for name in self.text_fields if name in OWN]:
            raise ValueError(
                f"text_fields cannot hold {own[0]!r}: sidray has a column of that name; give it another one, say "
                f"'my_{own[0].lstrip('_')}', and say in data.columns that yours is called {own[0]!r}"
            )
        known = sorted({*self.text_fields}.union(*CONTRACT.values()))
        if unknown := [name for name in self.columns if name not in known]:
            raise ValueError(f"columns renames {unknown[0]!r}{nearest(unknown[0], known)}, which no table has")
