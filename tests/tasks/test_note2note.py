"""NoteLLM-2's losses against (1), (8) and (9) written out in float64, and over one and two processes."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sidray.models.mlrm import Mlrm
from sidray.tasks import make_task
from sidray.tasks.note_views import NoteViews
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings
from tests.models.tiny import pairs_batch, tiny_mlrm
from tests.tasks.two_processes import Gradients, check_agreement, gradients_of

PAIRS = 12


def stage(**tasks: float) -> StageSettings:
    return StageSettings(name="s", tasks=tasks)  # type: ignore[arg-type]


def by_hand(anchors: Tensor, candidates: Tensor, model: Mlrm, batch: dict[str, Tensor], valid: Tensor) -> float:
    """(1) by loops; a note that is the anchor, its related one or related to it in train is no negative."""
    one, two = (x.detach().double().numpy() for x in (anchors, candidates))
    scale = math.exp(float(model.temperature.log_scale))
    items, related, n = batch["item_row"].tolist(), batch["related"].tolist(), len(anchors)
    losses = []
    for i in range(n):
        partner = (i + n // 2) % n
        if not valid[i]:
            continue
        scores = {}
        for j in range(n):
            known = items[j] in related[i] or items[j] in (items[i], items[partner])
            if j == partner or (valid[j] and not known):
                scores[j] = scale * np.dot(one[i], two[j]) / np.linalg.norm(one[i]) / np.linalg.norm(two[j])
        losses.append(-scores[partner] + math.log(sum(math.exp(value) for value in scores.values())))
    return float(np.mean(losses))


@pytest.fixture
def model(tmp_path: Path) -> Mlrm:
    return tiny_mlrm(tmp_path).eval()


@torch.no_grad()
def test_the_losses_are_the_papers(model: Mlrm) -> None:
    batch = pairs_batch(model, PAIRS)
    views = NoteViews(model, batch)
    visual, multimodal = views.notes
    assert visual is not None
    everyone = torch.ones(2 * PAIRS, dtype=torch.bool)
    present = batch["image.present"]
    pictured = present & present.roll(PAIRS)
    m = by_hand(multimodal, multimodal, model, batch, everyone)
    v = by_hand(visual, visual, model, batch, pictured)
    assert 0 < pictured.sum() < 2 * PAIRS
    assert make_task("note2note", stage(note2note=1)).loss(views)[0].item() == pytest.approx(m, rel=1e-5)
    assert make_task("note2note_visual", stage(note2note_visual=1)).loss(views)[0].item() == pytest.approx(v, rel=1e-5)
    alpha = 9
    module = StageModule(model, stage(note2note=alpha / (1 + alpha), note2note_visual=1 / (1 + alpha)))
    assert module.eval()(batch)[0].item() == pytest.approx((v + alpha * m) / (1 + alpha), rel=1e-5)


@torch.no_grad()
def test_omni_retrieval_is_the_mean_of_nine(tmp_path: Path) -> None:
    model = tiny_mlrm(tmp_path, micl=False, late=False).eval()
    batch = pairs_batch(model, PAIRS)
    views = NoteViews(model, batch)
    present = batch["image.present"]
    everyone, pictured = torch.ones_like(present), present & present.roll(PAIRS)
    shown = [(views.compress("note")[1], everyone), (views.compress("note_text")[1], everyone)]
    shown.append((views.compress("note_image")[1], pictured))
    expected = [by_hand(a, b, model, batch, one & two) for (a, one), (b, two) in product(shown, repeat=2)]
    assert len(expected) == 9
    assert make_task("omni", stage(omni=1)).loss(views)[0].item() == pytest.approx(np.mean(expected), rel=1e-5)


@torch.no_grad()
def test_recall_is_counted_among_what_competes(model: Mlrm) -> None:
    """A temperature of any size leaves the ranks; a batch of one pair is always right."""
    found = make_task("note2note", stage(note2note=1)).loss(NoteViews(model, pairs_batch(model, 1)))[1]
    assert found["R@1"].item() == found["R@10"].item() == 1


def test_everything_that_the_loss_reads_learns(model: Mlrm) -> None:
    module = StageModule(model, stage(note2note=0.9, note2note_visual=0.1))
    module(pairs_batch(model, PAIRS))[0].backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    unread = {n for n in silent if "embed_tokens" not in n and "lm_head" not in n and "pooler" not in n}
    assert unread == set()


def gradients(folder: str, chunk: int, rank: int, world: int) -> Gradients:
    """Rank r holds the r-th share of the pairs: their items and their related items."""
    model = tiny_mlrm(Path(folder))
    share = PAIRS // world
    rows = torch.arange(rank * share, (rank + 1) * share)
    own = torch.cat([rows, PAIRS + rows])
    batch = {name: value[own] for name, value in pairs_batch(model, PAIRS).items()}
    return gradients_of(StageModule(model, stage(note2note=0.9, note2note_visual=0.1), chunk), batch, world)


def test_one_process_two_processes_and_chunks_agree(tmp_path: Path) -> None:
    check_agreement(gradients, tmp_path, chunk=3)
