"""Fixtures of the data layer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from sidray.data import items
from sidray.data.checks import check_items, read_items
from sidray.data.settings import DataSettings
from sidray.data.tables import TableFiles


def blocks_in_this_process(table: TableFiles, settings: DataSettings) -> Iterator[pa.Table]:
    """What `items._checked_blocks` yields, without Ray. test_on_ray.py holds Ray's answer to this one."""
    for number in range(len(table.units)):
        for block in read_items(table, number, settings):
            yield from check_items(block, settings, table)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_checked_blocks", blocks_in_this_process)
