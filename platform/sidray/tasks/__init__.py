"""Training tasks by the names that recipes use. A task of your own: derive from Task or Contrastive, see own.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidray.tasks.base import Contrastive, Task
from sidray.tasks.generative import Causal, CausalSids, Doc2DocId
from sidray.tasks.image2text import Image2Text
from sidray.tasks.note2note import CrossModal, Note2Note, Note2NoteVisual
from sidray.tasks.own import own_task
from sidray.tasks.query2image import Query2Image
from sidray.tasks.query2item import Query2Item, Query2ItemHard
from sidray.tasks.query2text import Query2Text

if TYPE_CHECKING:
    from sidray.training.settings import StageSettings

__all__ = ["TASKS", "Contrastive", "Task", "make_task"]

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task
    for task in (
        *(Query2Text, Image2Text, Query2Image, Query2Item, Query2ItemHard, Doc2DocId, Causal, CausalSids),
        *(Note2Note, Note2NoteVisual, CrossModal),
    )
}


def make_task(name: str, stage: StageSettings) -> Task[Any]:
    """The task with what it takes from the stage: its temperature, or the vocabulary of its softmax. UserError for one
    of a user's own that cannot be had."""
    kind = own_task(name) if ":" in name else TASKS[name]
    if issubclass(kind, Contrastive | Query2ItemHard):
        return kind(stage.tau)
    if issubclass(kind, Causal):
        return kind(stage.vocabulary)
    return kind()
