"""Composing segments into padded batches, and the pictures of the shuffled control."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from sidray.data.catalogue import Catalogue
from sidray.models.inputs import ImageSource, Segment, batch_of, sid_segment, text_group


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
    groups = text_group([segment(5, 2), segment(6, 2), segment(5, 2)])
    assert groups[0] == groups[2] != groups[1]
    assert (groups >= 0).all()


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
