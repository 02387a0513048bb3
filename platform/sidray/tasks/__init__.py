"""Training tasks by the names that recipes use."""

from __future__ import annotations

from sidray.tasks.base import Task
from sidray.tasks.generative import Causal, CausalSids, Doc2DocId
from sidray.tasks.image2text import Image2Text
from sidray.tasks.query2image import Query2Image
from sidray.tasks.query2item import Query2Item, Query2ItemHard
from sidray.tasks.query2text import Query2Text

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (Query2Text, Image2Text, Query2Image, Query2Item, Query2ItemHard, Doc2DocId, Causal, CausalSids)
}


def make_task(name: str, tau: float) -> Task:
    """The task with its temperature, if it has one."""
    kind = TASKS[name]
    return (
        kind(tau) if issubclass(kind, Query2Item | Query2ItemHard | Query2Text | Image2Text | Query2Image) else kind()
    )
