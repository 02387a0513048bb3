"""Which rows a task is validated on, and what picks a stage's best checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sidray.training.module import StageModule
from sidray.training.settings import StageSettings
from sidray.training.validation import score_of, validate
from tests.models.tiny import tiny_towers


def test_tasks_count_by_their_weight_in_the_loss() -> None:
    metrics = {"note2note/R@10": 0.2, "note2note/R@1": 0.9, "note2note_visual/R@10": 0.1, "note2note/loss": 5.0}
    assert score_of(metrics, {"note2note": 9.0, "note2note_visual": 1.0}) == pytest.approx(0.19)


def test_token_accuracy_counts_where_no_task_is_contrastive() -> None:
    both = {"query2item/R@10": 0.3, "causal/token accuracy": 0.8}
    assert score_of(both, {"query2item": 1.0, "causal": 3.0}) == pytest.approx(0.3)
    assert score_of({"causal/token accuracy": 0.8}, {"causal": 3.0}) == pytest.approx(0.8)
    assert score_of({}, {"causal": 1.0}) == 0.0


class Recorded:
    """In the place of a stage's module: notes which rows each task is validated on."""

    stage = SimpleNamespace(item="fused")

    def __init__(self, *tasks: SimpleNamespace) -> None:
        self.tasks, self.chunk, self.seen = tasks, 0, dict[str, list[list[int]]]()

    def eval(self) -> None: ...

    def train(self) -> None: ...

    def run(self, batch: dict[str, Tensor], tasks: list[SimpleNamespace]) -> tuple[None, dict[str, Tensor]]:
        for task in tasks:
            self.seen.setdefault(task.name, []).append(batch["item_row"].tolist())
        return None, {f"{task.name}/loss": torch.tensor(1.0) for task in tasks}


def task(name: str, column: str, **given: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, columns=lambda item: frozenset({column}), **given)


def test_hard_negatives_are_not_validated_for_held_out_clicks_have_none() -> None:
    kinds = {"hard": "negatives", "alone": "query"}
    module = Recorded(*(task(name, column, contrastive=False, rows="clicks") for name, column in kinds.items()))
    found = validate(module, {"item_row": torch.arange(6)}, batch_size=6)  # type: ignore[arg-type]
    assert set(found) == {"alone/loss"}


def test_rows_that_belong_together_are_validated_together() -> None:
    """Contrastive tasks compare all rows; of a pair the items stand in the first half and what they go with behind."""
    kinds = {"contrastive": (True, "clicks"), "pairs": (False, "pairs"), "alone": (False, "clicks")}
    module = Recorded(*(task(name, "query", contrastive=each, rows=rows) for name, (each, rows) in kinds.items()))
    validate(module, {"item_row": torch.arange(6)}, batch_size=4)  # type: ignore[arg-type]
    assert module.seen == {"contrastive": [[*range(6)]], "pairs": [[*range(6)]], "alone": [[0, 1, 2, 3], [4, 5]]}


def test_the_loss_of_a_vector_that_serves_nobody_picks_nothing(tmp_path: Path) -> None:
    both = {"note2note": 0.9, "note2note_visual": 0.1}
    picks = {
        name: StageModule(tiny_towers(tmp_path / name, 0), StageSettings(name="s", tasks=tasks)).weights
        for name, tasks in (("both", both), ("visual", {"note2note_visual": 0.1}))
    }
    assert picks == {"both": {"note2note": 0.9}, "visual": {"note2note_visual": 0.1}}
