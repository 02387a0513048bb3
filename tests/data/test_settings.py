"""data: settings that cannot be meant are refused, with the key named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sidray.data.settings import OWN, RESERVED, DataSettings
from sidray.retrieval import item_table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "tables"}, "needs items"),
        ({"source": "hm"}, "needs folder"),
        ({"source": "hm", "folder": "f", "clicks": "c"}, "clicks is for source 'tables'"),
        ({"source": "pictograms", "folder": "f"}, "folder is for source 'hm'"),
        ({"source": "pictograms", "columns": {"title": "name"}}, "columns is for source 'tables'"),
        ({"source": "tables", "items": "i", "columns": {"titel": "name"}}, "did you mean 'title'"),
        ({"text_fields": ["image"]}, "'image'"),
        ({"text_fields": ["brand", "seq"]}, r"'seq': sidray has a column of that name(.|\n)*data\.columns"),
        ({"text_fields": ["_row"]}, "'_row': sidray has a column of that name"),
        ({"text_fields": ["a", "a"]}, "twice"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "sum is below 1"),
        ({"limit": 0}, "limit"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings(**values)


def test_sensible_settings_pass() -> None:
    assert DataSettings().source == "pictograms"
    renamed = DataSettings(source="tables", items="i", text_fields=["brand"], columns={"item_id": "sku", "brand": "b"})
    assert renamed.columns["item_id"] == "sku"


def test_a_name_that_the_item_table_needs_is_refused_before_anything_is_trained() -> None:
    for name in item_table.schema(8).names:
        assert name in (*RESERVED, *OWN)
    given = DataSettings(source="tables", items="i", text_fields=["row_number"], columns={"row_number": "seq"})
    assert given.text_fields == ["row_number"]
