"""Groups of similar length: every row once, and the padding that was allowed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.models.lengths import of_similar_length


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=40), padding=st.floats(0, 2))
def test_groups_of_similar_length_hold_the_padding(lengths: list[int], padding: float) -> None:
    groups = of_similar_length(lengths, padding)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    padded = sum(len(group) * max(lengths[row] for row in group) for group in groups)
    assert padded <= (1 + padding) * sum(lengths)
    assert len(groups) <= len(set(lengths))


def test_lengths_that_fit_stay_together() -> None:
    assert of_similar_length([10, 9, 10], 0.1) == [[1, 0, 2]]
    assert of_similar_length([30, 4, 4, 31, 4], 0.1) == [[1, 2, 4], [0, 3]]
