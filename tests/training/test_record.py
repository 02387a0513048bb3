"""The record of a stage: its files, its rates, what a resumed stage knows."""

from __future__ import annotations

import json
from pathlib import Path

from sidray.training.record import Record


def trained() -> Record:
    """Two steps of 64 rows, .5 s each, .1 s of the second for data; a validation between them."""
    record = Record("finetune", 64, wall_s=3.0)
    record.stepped({"loss": 2.0}, 0.5, 0.0)
    assert record.validated(0.25, {"query2item/R@10": 0.25})
    record.stepped({"loss": 1.0}, 0.5, 0.1)
    return record


def test_every_step_and_validation_is_a_line_in_order(tmp_path: Path) -> None:
    trained().write(str(tmp_path))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 2.0, "seconds": 0.5, "waited": 0.0},
        {"validation": {"step": 1, "score": 0.25, "query2item/R@10": 0.25}},
        {"step": 2, "loss": 1.0, "seconds": 0.5, "waited": 0.1},
    ]
    assert json.loads((tmp_path / "stage.json").read_text()) == {
        "stage": "finetune",
        "batch_size": 64,
        "wall_s": 3.0,
    }


def test_it_comes_back_from_its_files(tmp_path: Path) -> None:
    record = trained()
    record.write(str(tmp_path))
    assert Record.read(str(tmp_path)) == record
    Record("new", 8).write(str(tmp_path))
    assert Record.read(str(tmp_path)) == Record("new", 8)


def test_rates_are_of_the_time_that_training_took() -> None:
    record = trained()
    assert record.rates() == (128.0, 0.1)
    assert record.rates(1) == (128.0, 0.2)
    assert record.told() == "128 samples/s, data wait 10 %, loss 1.000"


def test_only_a_higher_score_is_better() -> None:
    record = trained()
    assert not record.validated(0.25, {})
    assert record.validated(0.3, {})
    assert not record.validated(0.3, {})
