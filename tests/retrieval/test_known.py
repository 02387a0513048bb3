"""What the writer knows of the table's items, against a dictionary."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.retrieval import known as module
from sidray.retrieval.known import KnownItems, fingerprint

Row = tuple[str, int, str | None]  # item, seq, content hash, None: deleted


def table(rows: list[Row]) -> pa.Table:
    columns = {
        "item_id": pa.array([item for item, *_ in rows], pa.string()),
        "seq": pa.array([seq for _, seq, _ in rows], pa.int64()),
        "deleted": pa.array([content is None for *_, content in rows], pa.bool_()),
        "content_hash": pa.array([content for *_, content in rows], pa.string()),
    }
    return pa.table(columns)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, "RECENT", 3)
        yield


row = st.tuples(st.sampled_from("abcdefghij"), st.integers(1, 30), st.sampled_from(["x", "y", None]))
batches = st.lists(st.lists(row, max_size=6), max_size=5)


@given(start=st.lists(row, max_size=6, unique_by=lambda each: each[0]), news=batches)
def test_the_highest_seq_counts_however_rows_come(start: list[Row], news: list[list[Row]]) -> None:
    known = KnownItems(table(start))
    expected = {item: (seq, content) for item, seq, content in start}
    for rows in news:
        known.apply(table(rows))
        for item, seq, content in rows:
            if seq >= expected.get(item, (0, None))[0]:
                expected[item] = (seq, content)
        assert len(known._recent) <= 3
    for item in "abcdefghijk":
        _, content = expected.get(item, (0, None))
        assert known.content(item) == (None if content is None else fingerprint(content))
