"""What picks a stage's best checkpoint."""

from __future__ import annotations

import pytest

from sidray.training.validation import score_of


def test_tasks_count_by_their_weight_in_the_loss() -> None:
    metrics = {"note2note/R@10": 0.2, "note2note/R@1": 0.9, "note2note_visual/R@10": 0.1, "note2note/loss": 5.0}
    assert score_of(metrics, {"note2note": 9.0, "note2note_visual": 1.0}) == pytest.approx(0.19)


def test_token_accuracy_counts_where_no_task_is_contrastive() -> None:
    both = {"query2item/R@10": 0.3, "causal/token accuracy": 0.8}
    assert score_of(both, {"query2item": 1.0, "causal": 3.0}) == pytest.approx(0.3)
    assert score_of({"causal/token accuracy": 0.8}, {"causal": 3.0}) == pytest.approx(0.8)
    assert score_of({}, {"causal": 1.0}) == 0.0
