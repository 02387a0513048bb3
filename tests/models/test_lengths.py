"""Groups of similar length: every row once, and the padding that was allowed."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.models.lengths import PADDING, of_similar_length, read
from sidray.models.mlrm import NoteInput
from sidray.models.towers import ImageInput, TextInput
from tests.models.tiny import random_batch, tiny_towers


@settings(max_examples=100)
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


def test_groups_are_read_as_all_rows_would_be(tmp_path: Path) -> None:
    towers = tiny_towers(tmp_path).eval()
    batch = random_batch(towers, 40)
    text = TextInput(batch["text.ids"], batch["text.mask"])
    shown: list[TextInput] = []

    def encode(part: TextInput) -> torch.Tensor:
        shown.append(part)
        return towers.encode_text(part)

    with torch.inference_mode():
        torch.testing.assert_close(read(encode, text), towers.encode_text(text), rtol=1e-4, atol=1e-5)
    assert len(shown) > 1
    assert sum(part.ids.numel() for part in shown) <= (1 + PADDING) * int(text.mask.sum())
    assert sorted(row for part in shown for row in part.ids[:, 0].tolist()) == sorted(text.ids[:, 0].tolist())


def test_notes_keep_their_pictures() -> None:
    mask = torch.arange(6)[None] < torch.tensor([[6], [2], [5], [2]])
    values = torch.arange(4.0)[:, None]
    notes = NoteInput(TextInput(mask.long(), mask), ImageInput(values, torch.ones(4, dtype=torch.bool)))

    def encode(part: NoteInput) -> torch.Tensor:
        assert part.text is not None
        assert part.image is not None
        return torch.cat([part.text.mask.sum(1, keepdim=True), part.image.values], 1)

    assert read(encode, notes).tolist() == [[6, 0], [2, 1], [5, 2], [2, 3]]
    assert (
        read(lambda part: part.image.values if part.image else values, NoteInput(None, notes.image)).tolist()
        == values.tolist()
    )
