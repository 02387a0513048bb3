"""What an item's vector is found by."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sidray.embedding.kept import Kept

NAMES = st.text("ab ", max_size=3)
ITEMS = st.lists(st.tuples(NAMES, st.none() | NAMES), max_size=20, unique_by=lambda item: item[0])


def table(items: list[tuple[str, str | None]]) -> pa.Table:
    names, hashes = [name for name, _ in items], [hashed for _, hashed in items]
    return pa.table({"item_id": pa.array(names, pa.string()), "content_hash": pa.array(hashes, pa.string())})


@given(ITEMS, st.lists(st.tuples(NAMES, NAMES), max_size=20), st.integers(0, 20))
def test_an_item_is_found_with_its_content_alone(
    items: list[tuple[str, str | None]], wanted: list[tuple[str, str]], cut: int
) -> None:
    kept = Kept.of([table(items[:cut]), table(items[cut:])])
    expected = [items.index(pair) if pair in items else -1 for pair in wanted]
    assert kept.find([name for name, _ in wanted], [hashed for _, hashed in wanted]).tolist() == expected
    assert len(kept) == sum(hashed is not None for _, hashed in items)


def test_nothing_is_known_of_nothing() -> None:
    assert Kept.of([]).find(["a"], ["b"]).tolist() == [-1]
