"""Held-out metrics of a stage, and the score that picks its best towers.

metrics = validate(module, batch, batch_size=32);  score_of(metrics, module.weights)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sidray.training.group import averaged
from sidray.training.module import StageModule


@torch.no_grad()
def validate(module: StageModule, valid: Mapping[str, Tensor], batch_size: int) -> dict[str, float]:
    """Held-out metrics of every task but those of hard negatives, which held-out clicks have none of: contrastive ones
    and those of pairs, whose rows belong together, over the whole pool of rows, the others batch by batch."""
    found: dict[str, float] = {}
    tasks = [task for task in module.tasks if "negatives" not in task.columns(module.stage.item)]
    pooled = [task for task in tasks if task.contrastive or task.rows == "pairs"]
    module.eval()
    chunk, module.chunk = module.chunk, module.chunk or 64
    if pooled:
        found |= averaged(module.run(valid, pooled)[1])
    rows = len(valid["item_row"])
    for task in tasks:
        if task not in pooled:
            parts = [averaged(module.run(_rows(valid, s, batch_size), [task])[1]) for s in range(0, rows, batch_size)]
            found |= {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    module.chunk = chunk
    module.train()
    return found


def _rows(batch: Mapping[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    return {name: value[start : start + size] for name, value in batch.items()}


def score_of(metrics: Mapping[str, float], tasks: Mapping[str, float]) -> float:
    """What picks the best checkpoint: held-out R@10 of the contrastive tasks, else token accuracy, each task counted by
    its weight in the loss."""
    for metric in ("R@10", "token accuracy"):
        found = {task: metrics[f"{task}/{metric}"] for task in tasks if f"{task}/{metric}" in metrics}
        if found:
            return sum(tasks[task] * value for task, value in found.items()) / sum(tasks[task] for task in found)
    return 0.0
