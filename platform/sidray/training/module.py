"""The module that a DeepSpeed engine wraps: towers + a stage's tasks; forward sums their losses (joint training)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sidray.models.towers import Towers, set_trainable
from sidray.tasks import make_task
from sidray.tasks.base import Task
from sidray.tasks.views import Batch, Views
from sidray.training.settings import StageSettings


class StageModule(nn.Module):
    """forward(batch) -> (weighted sum of the tasks' losses, metrics by task: loss, R@1, R@10, token accuracy)."""

    def __init__(self, towers: Towers, stage: StageSettings, chunk: int = 0) -> None:
        super().__init__()
        set_trainable(towers, [part for part in stage.train if part != "sids" or towers.text.sids is not None])
        self.towers = towers
        self.stage = stage
        self.chunk = chunk
        self.tasks: dict[Task, float] = {make_task(name, stage): weight for name, weight in stage.tasks.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.run(batch, list(self.tasks))

    def run(self, batch: Batch, tasks: Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for some of the stage's tasks."""
        views = Views(self.towers, batch, self.stage.item, self.chunk)
        total = batch["item_row"].new_zeros((), dtype=next(self.towers.parameters()).dtype).float()
        metrics: dict[str, Tensor] = {}
        for task in tasks:
            loss, found = task.loss(views)
            total = total + self.tasks[task] * loss
            metrics[f"{task.name}/loss"] = loss.detach()
            metrics |= {f"{task.name}/{name}": value for name, value in found.items()}
        return total, metrics


def columns_of(stage: StageSettings) -> frozenset[str]:
    """All inputs that the stage's tasks read."""
    tasks = [make_task(name, stage) for name in stage.tasks]
    return frozenset().union(*(task.columns(stage.item) for task in tasks))


def rows_of(stage: StageSettings) -> str:
    """Tasks that need no query run on item rows when they are alone; beside others they read the same click rows."""
    kinds = {make_task(name, stage).rows for name in stage.tasks}
    return "clicks" if "clicks" in kinds else "items"
