"""The module that a DeepSpeed engine wraps: a model + a stage's tasks; forward sums their losses (joint training)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from sidray.errors import UserError
from sidray.models.mlrm import Mlrm
from sidray.models.towers import Batch, Towers
from sidray.models.trained import TrainedModel, set_trainable
from sidray.tasks import make_task
from sidray.tasks.base import Rows, Task
from sidray.tasks.note_views import NoteViews
from sidray.tasks.views import Views
from sidray.training.settings import StageSettings


class StageModule(nn.Module):
    """forward(batch) -> (weighted sum of the tasks' losses, metrics by task: loss, R@1, R@10, token accuracy)."""

    def __init__(self, model: TrainedModel, stage: StageSettings, chunk: int = 0) -> None:
        super().__init__()
        set_trainable(model, stage.train)
        self.model = model
        self.stage = stage
        self.chunk = chunk
        self.tasks: dict[Task[Any], float] = {make_task(name, stage): weight for name, weight in stage.tasks.items()}
        self.train()  # dropout from the first step on: pretrained weights come in eval mode

    @property
    def weights(self) -> dict[str, float]:
        """In the loss, of each task that selects, by the name that its metrics carry; of all when none does."""
        selecting = [task for task in self.tasks if task.selects] or list(self.tasks)
        return {task.name: self.tasks[task] for task in selecting}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.run(batch, list(self.tasks))

    def run(self, batch: Batch, tasks: Sequence[Task[Any]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for some of the stage's tasks."""
        views = self._views(batch)
        total = batch["item_row"].new_zeros((), dtype=next(self.model.parameters()).dtype).float()
        metrics: dict[str, Tensor] = {}
        for task in tasks:
            loss, found = task.loss(views)
            total = total + self.tasks[task] * loss
            metrics[f"{task.name}/loss"] = loss.detach()
            metrics |= {f"{task.name}/{name}": value for name, value in found.items()}
        return total, metrics

    def _views(self, batch: Batch) -> Views | NoteViews:
        if isinstance(self.model, Mlrm):
            return NoteViews(self.model, batch, self.chunk)
        return Views(cast(Towers, self.model), batch, self.stage.item, self.chunk)


def columns_of(stage: StageSettings) -> frozenset[str]:
    """All inputs that the stage's tasks read."""
    return frozenset().union(*(columns for _, columns in _read(stage)))


def check_columns(stage: StageSettings, rows: Iterable[Rows], there: frozenset[str]) -> None:
    """UserError for a task whose rows are not among `rows`, or which reads a column that is not there. (The shipped
    ones are checked earlier, when the recipe is loaded.)"""
    names = [task.name for task, _ in _read(stage)]
    if len(set(names)) < len(names):
        raise UserError(f"stage {stage.name}: two of its tasks have one name: {names}", "give yours another `name`")
    for task, columns in _read(stage):
        where = f"stage {stage.name}: task {task.name}"
        if task.rows not in rows:
            raise UserError(f"{where} has rows = {task.rows!r}", f"here it must be {' or '.join(map(repr, rows))}")
        if missing := sorted(columns - there):
            raise UserError(f"{where} reads {missing[0]}, which is not there", f"there are {', '.join(sorted(there))}")


def _read(stage: StageSettings) -> list[tuple[Task[Any], frozenset[str]]]:
    """The stage's tasks, and what each reads."""
    tasks = [make_task(name, stage) for name in stage.tasks]
    return [(task, task.columns(stage.item)) for task in tasks]


def rows_of(stage: StageSettings) -> Rows:
    """Tasks that need no query run on item rows when they are alone; beside others they read the same click rows. Tasks
    on pairs have no others beside them."""
    kinds = {make_task(name, stage).rows for name in stage.tasks}
    return next(kind for kind in ("pairs", "clicks", "items") if kind in kinds)
