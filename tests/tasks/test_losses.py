"""InfoNCE against float64 written out, its masks, and one loss whatever the number of processes and chunks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sidray.errors import UserError
from sidray.models.towers import TextInput
from sidray.tasks import TASKS, make_task
from sidray.tasks.losses import hard_info_nce, info_nce
from sidray.tasks.views import Views
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings
from tests.models.tiny import random_batch, tiny_towers
from tests.tasks.two_processes import Gradients, check_agreement, gradients_of

CONTRASTIVE = ["query2text", "image2text", "query2image", "query2item"]
ROWS = 12


def by_hand(a: Tensor, p: Tensor, tau: float, out: Tensor, valid: Tensor) -> float:
    """Eq. (4) in float64, one row after the other."""
    a, p = a.double(), p.double()
    losses = []
    for i in range(len(a)):
        if not valid[i]:
            continue
        s = [float(a[i] @ p[j] / a[i].norm() / p[j].norm() / tau) for j in range(len(p))]
        kept = [s[j] for j in range(len(p)) if j == i or (not out[i, j] and valid[j])]
        losses.append(-s[i] + math.log(sum(math.exp(x) for x in kept)))
    return sum(losses) / len(losses)


def test_info_nce_is_equation_4() -> None:
    g = torch.Generator().manual_seed(1)
    a, p = torch.randn(7, 5, generator=g), torch.randn(7, 5, generator=g)
    out = torch.rand(7, 7, generator=g) < 0.3
    valid = torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool()
    loss, better = info_nce(a, p, 0.05, out, valid)
    assert loss.item() == pytest.approx(by_hand(a, p, 0.05, out, valid), rel=1e-5)
    everything = torch.ones(7, dtype=torch.bool)
    plain, better = info_nce(a, p, 0.05, torch.zeros(7, 7).bool())
    assert plain.item() == pytest.approx(by_hand(a, p, 0.05, ~everything[:, None].expand(7, 7), everything), rel=1e-5)
    scores = torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(p, dim=-1).T
    assert better.tolist() == [int((row > row[i]).sum()) for i, row in enumerate(scores)]


def test_an_equal_score_ranks_above_the_positive() -> None:
    """A model that maps everything to one point must not look perfect."""
    _, better = info_nce(torch.ones(4, 3), torch.ones(4, 3), 0.05, torch.zeros(4, 4).bool())
    assert better.tolist() == [3, 3, 3, 3]


def test_hard_negatives_by_hand() -> None:
    q, p = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    negatives = torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    valid = torch.tensor([[True, False], [False, False]])
    want = math.log(1 + math.exp((0 - 1) / 0.5))  # row 0 against its first negative alone; row 1 has none
    assert hard_info_nce(q, p, negatives, valid, 0.5).item() == pytest.approx(want, rel=1e-6)


def test_each_task_masks_by_its_own_rule(tmp_path: Path) -> None:
    towers = tiny_towers(tmp_path, 9)
    batch = random_batch(towers, ROWS)
    views = Views(towers, batch, "fused")
    rule = {name: make_task(name, stage()).false_negatives(views) for name in CONTRASTIVE}
    text, image, item = batch["text_group"], batch["image_group"], batch["item_row"]
    clicked = torch.stack([torch.isin(item, known) for known in batch["query.clicked"]]) | (item[:, None] == item[None])
    assert torch.equal(rule["image2text"], text[:, None] == text[None])
    texts = torch.stack([torch.isin(text, known) for known in batch["query.clicked_texts"]])
    assert torch.equal(rule["query2text"], (text[:, None] == text[None]) | texts)
    assert torch.equal(rule["query2image"], (image[:, None] == image[None]) | clicked)
    assert torch.equal(rule["query2item"], clicked)
    assert not torch.equal(rule["query2item"], rule["query2text"])  # equal texts stay negatives there


def stage(**settings: object) -> StageSettings:
    return StageSettings(name="joint", tasks=dict.fromkeys([*CONTRASTIVE, "causal"], 1.0), **settings)  # type: ignore[arg-type]


def gradients(folder: str, chunk: int, rank: int, world: int) -> Gradients:
    torch.manual_seed(0)
    towers = tiny_towers(Path(folder), 9)
    share = ROWS // world
    batch = {k: v[rank * share : (rank + 1) * share] for k, v in random_batch(towers, ROWS).items()}
    return gradients_of(StageModule(towers, stage(vocabulary="batch"), chunk), batch, world)


def test_one_process_two_processes_and_chunks_agree(tmp_path: Path) -> None:
    check_agreement(gradients, tmp_path, chunk=2)


def test_causal_runs_over_all_tokens_or_over_the_targets_of_the_batch(tmp_path: Path) -> None:
    """Eq. (12) written out in float64, with either vocabulary."""
    towers = tiny_towers(tmp_path, 9)
    batch = random_batch(towers, ROWS)
    embedding = towers.text.lm.get_input_embeddings().weight.double()
    hidden = towers.hidden(TextInput.of_batch(batch, "causal")).double()
    row, position = batch["causal.target"].nonzero(as_tuple=True)
    targets = batch["causal.ids"][row, position]
    everything = torch.cat([embedding, towers.text.sids.weight.double()])  # type: ignore[union-attr]
    for vocabulary, weights in (("full", everything), ("batch", embedding[torch.unique(targets)])):
        logits = [hidden[r, p - 1] @ weights.T for r, p in zip(row, position, strict=True)]
        own = [hidden[r, p - 1] @ embedding[t] for r, p, t in zip(row, position, targets, strict=True)]
        want = sum(float(torch.logsumexp(x, 0) - y) for x, y in zip(logits, own, strict=True)) / len(own)
        loss, _ = make_task("causal", stage(vocabulary=vocabulary)).loss(Views(towers, batch, "fused"))
        assert loss.item() == pytest.approx(want, rel=1e-5), vocabulary


def test_the_batch_vocabulary_needs_tied_embeddings(tmp_path: Path) -> None:
    towers = tiny_towers(tmp_path, 9)
    towers.text.lm.config.tie_word_embeddings = False
    task = make_task("causal", stage(vocabulary="batch"))
    with pytest.raises(UserError, match="set vocabulary: full"):
        task.loss(Views(towers, random_batch(towers, ROWS), "fused"))


def test_every_task_has_a_name_and_columns() -> None:
    for name in TASKS:
        assert make_task(name, stage()).columns("sids" if name == "query2item_hard" else "fused")


def test_a_model_that_has_diverged_finds_nothing() -> None:
    """No comparison with a NaN is true: the positive of such an anchor must not count as the first."""
    candidates = torch.randn(4, 8)
    for bad in ((torch.full((4, 8), torch.nan), candidates), (candidates, torch.full((4, 8), torch.nan))):
        _, better = info_nce(*bad, 0.05, torch.eye(4, dtype=torch.bool))
        assert better.tolist() == [3] * 4
