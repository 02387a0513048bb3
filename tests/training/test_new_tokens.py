"""What an MLRM's words and pictures are standardised by before training, on a catalogue that is not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sidray.models.mlrm import Standard
from sidray.models.note_inputs import NoteFetch, note_input
from sidray.training.new_tokens import start_standards
from tests.models.tiny import pairs_batch, tiny_mlrm

ITEMS = 40
TRAIN = np.arange(8, ITEMS)  # the items of train pairs


class Fetch:
    """A batch of notes by their rows, as NoteFetch gives them."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch
        self.catalogue = SimpleNamespace(paired_items={"train": TRAIN}.__getitem__)

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        return {name: value[torch.as_tensor(rows)] for name, value in self.batch.items()}


@pytest.mark.parametrize("pictures", [True, False])
@torch.no_grad()
def test_words_and_pictures_are_standardised_over_the_train_notes(tmp_path: Path, pictures: bool) -> None:
    model = tiny_mlrm(tmp_path).train()
    batch = pairs_batch(model, ITEMS // 2)
    batch["image.present"] &= pictures
    fetch = Fetch(batch)
    start_standards(model, cast(NoteFetch, fetch))
    assert model.training
    model.eval()
    notes = note_input(fetch(TRAIN), "note")
    assert notes.text is not None
    assert notes.image is not None
    grid = model.grid(notes.image)
    shown = (notes.text.ids == model.base).any(1)
    assert 2 < int(shown.sum()) < len(TRAIN)  # the others have no n_v, and what stands in its place says nothing
    visual, multimodal = model.compressed(notes.text, grid).unbind(1)
    for words in (visual[shown], multimodal):
        torch.testing.assert_close(words.mean(0), torch.zeros(model.text.width), atol=1e-3, rtol=0)
        assert 0.5 < words.std(0).median() < 1.1
    assert model.whole is not None
    whole = model.whole.standard(model.whole.normalise(model.whole_of(grid)))
    assert torch.isfinite(whole).all()
    if pictures:
        own = whole[notes.image.present]
        torch.testing.assert_close(own.mean(0), torch.zeros(own.shape[1]), atol=1e-3, rtol=0)
    else:
        assert torch.equal(cast(Standard, model.whole.standard).scale, torch.ones(whole.shape[1]))
