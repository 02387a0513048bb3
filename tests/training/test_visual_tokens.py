"""Visual embeddings and <IMG_EMB> before training, among text whose states share huge dimensions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from sidray.models.inputs import Segment
from sidray.models.mlrm import VISUAL
from sidray.models.note_inputs import NoteFetch
from sidray.training.new_tokens import start_visual_tokens
from tests.models.tiny import pairs_batch, tiny_mlrm

ITEMS, WORDS = 40, 12


class Fetch:
    """Prompts with cached states: a mean of 50 in one dimension, deviations that differ, one attention sink each."""

    def __init__(self, width: int) -> None:
        rng = np.random.default_rng(0)
        self.mean, self.deviation = np.zeros(width), np.linspace(1, 3, width)
        self.mean[5] = 50
        self.states = self.mean + self.deviation * rng.standard_normal((ITEMS, WORDS, width))
        self.states[:, 0] *= 100
        self.catalogue = SimpleNamespace(paired_items={"train": np.arange(ITEMS)}.__getitem__)

    def segments(self, rows: Any, style: str) -> list[Segment]:
        ids = np.array([*range(WORDS), VISUAL], np.int64)
        return [Segment(ids, np.concatenate([self.states[row], np.zeros_like(self.states[row, :1])])) for row in rows]


@torch.no_grad()
def test_they_have_the_mean_and_the_spread_of_the_text(tmp_path: Path) -> None:
    model = tiny_mlrm(tmp_path).eval()
    width = model.text.width
    fetch = Fetch(width)
    start_visual_tokens(model, cast(NoteFetch, fetch))
    assert model.connector is not None
    assert model.text.sids is not None
    mean, deviation = torch.tensor(fetch.mean).float(), torch.tensor(fetch.deviation).float()
    torch.testing.assert_close(model.connector.mean.data, mean, atol=0.5, rtol=0)
    torch.testing.assert_close(model.connector.scale.data, deviation, atol=0, rtol=0.15)
    grid = model.grid(cast(Any, SimpleNamespace(values=pairs_batch(model, 32)["image"])))
    embedded = model.connector(model._places(grid)).reshape(-1, width)
    away = (embedded - mean) / deviation
    assert 0.7 < away.square().mean().sqrt() < 1.4
    word = model.text.sids(ids=torch.tensor([0]))[0]
    assert abs(float(word[5]) - 50) < 10
    assert 1 < float((word - mean).square().mean().sqrt()) < 4
