"""Composing segments into padded batches, and the pictures of the shuffled control."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from sidray.data.catalogue import Catalogue
from sidray.models.fetch import Fetch
from sidray.models.inputs import NO_ROW, ImageSource, RawTexts, Segment, batch_of, sid_segment, text_groups


def segment(*ids: int, width: int | None = None) -> Segment:
    states = None if width is None else np.arange(len(ids) * width, dtype=np.float16).reshape(len(ids), width)
    return Segment(np.array(ids, np.int64), states)


def test_rows_are_concatenated_padded_and_marked() -> None:
    item, query = segment(5, 6, 2), segment(8, 9, 2)
    rows = [[item.body(), query.body()], [segment(7, 2).body(), segment(3, 2).body()]]
    batch = batch_of(rows, "x", target=-1)
    assert batch["x.ids"].tolist() == [[5, 6, 8, 9], [7, 3, 0, 0]]
    assert batch["x.mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert batch["x.target"].tolist() == [[False, False, True, True], [False, True, False, False]]


def test_states_travel_with_their_tokens_and_sids_have_none() -> None:
    whole = segment(5, 6, 2, width=2)
    batch = batch_of([[whole.body(), sid_segment(np.array([300, 301]), 2), whole.end()]], "x")
    assert batch["x.ids"].tolist() == [[5, 6, 300, 301, 2]]
    assert batch["x.states"][0].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0], [4, 5]]


def test_equal_texts_have_equal_groups() -> None:
    groups = text_groups([segment(5, 2), segment(6, 2), segment(5, 2)])
    assert groups[0] == groups[2] != groups[1]
    assert (groups >= 0).all()


def fetch_of(**parts: Any) -> Fetch:
    """Without a catalogue: what it would read is given."""
    fetch = Fetch(cast(Any, None), cast(Any, None), "clicks", frozenset())
    fetch.__dict__.update(parts)
    return fetch


class Texts(RawTexts):
    """Item k has text k // 2."""

    def __init__(self) -> None:
        self.catalogue = cast(Catalogue, SimpleNamespace(n_items=8))
        self.asked: list[int] = []

    def items(self, rows: Any) -> list[Segment]:
        self.asked += rows.tolist()
        return [segment(int(row) // 2, 2) for row in rows]


def test_the_texts_of_what_a_query_led_to_are_numbered_as_those_of_items() -> None:
    texts = Texts()
    fetch = fetch_of(texts=texts, _clicked=(np.array([0, 3, 3, 5]), np.array([0, 1, 6, 2, 3])))
    found = fetch._clicked_texts(np.array([0, 2, 1, 0]))
    none, (zero, one, _, three) = NO_ROW, texts.groups(np.array([0, 2, 4, 6]))
    assert found.tolist() == [sorted([zero, three]), [one, none], [none, none], sorted([zero, three])]
    assert sorted(texts.asked) == [0, 1, 2, 3, 4, 6]  # each text is read once


def test_a_prefix_stands_before_sids_alone() -> None:
    fetch = fetch_of(prompter=SimpleNamespace(sids_prefix=[7]), base=100)
    rows = fetch._rows_with_sids([segment(5, 2), segment(6, 2)], [np.array([1, 4]), np.array([], np.int64)])
    assert [batch_of([row], "x")["x.ids"][0].tolist() for row in rows] == [[5, 7, 101, 104, 2], [6, 2]]


def test_shuffled_pictures_are_one_fixed_permutation() -> None:
    class Ten:
        n_items = 10

    source = ImageSource(cast(Catalogue, cast(Any, Ten())), 8, None, shuffle=1)
    rows = np.arange(10)
    assert sorted(source.source_rows(rows)) == rows.tolist()
    assert source.source_rows(rows).tolist() != rows.tolist()
    np.testing.assert_array_equal(source.source_rows(rows[3:5]), source.source_rows(rows)[3:5])
    plain = ImageSource(cast(Catalogue, cast(Any, Ten())), 8, None, shuffle=None)
    assert plain.source_rows(rows) is rows
