"""A training task = the columns it needs + a loss on the towers. One file per task; `sidray.tasks.TASKS` names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from sidray.tasks.losses import info_nce, recalls
from sidray.tasks.views import ItemKind, Views

Rows = Literal["clicks", "items", "pairs"]
Metrics = dict[str, Tensor]


V = TypeVar("V")


class Task(ABC, Generic[V]):
    """`rows`: what a row of its batch is. `columns`: which inputs are fetched (see models.fetch and note_inputs). V:
    what the loss sees of the batch, Views of the towers or NoteViews of an MLRM. `contrastive`: it is validated over
    all held-out rows at once. `selects`: its held-out metric has a say in which towers are the best. `version`, of a
    task outside this package: raise it when the same settings would give other weights."""

    name: ClassVar[str]
    rows: ClassVar[Rows]
    contrastive: ClassVar[bool] = False
    selects: ClassVar[bool] = True
    version: ClassVar[int] = 1

    @abstractmethod
    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        """Names of the inputs that `loss` reads, given what items are made of in the stage."""

    @abstractmethod
    def loss(self, views: V) -> tuple[Tensor, Metrics]:
        """The loss of the global batch (see losses.global_mean) and detached metrics, each a scalar or [b]."""


ITEM_COLUMNS: dict[ItemKind, frozenset[str]] = {
    "fused": frozenset({"text", "image"}),
    "text": frozenset({"text"}),
    "sids": frozenset({"item"}),
}


class Contrastive(Task[Views]):
    """InfoNCE between two views; subclasses give the pair and the false negatives that their rule masks."""

    contrastive = True
    tau: float

    def __init__(self, tau: float = 0.05) -> None:
        self.tau = tau

    @abstractmethod
    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        """Anchors and positives, [b, d] each."""

    @abstractmethod
    def false_negatives(self, views: Views) -> Tensor:
        """[b, world * b] bool."""

    def valid(self, views: Views) -> Tensor | None:
        """[b] bool rows that can take part; None = all."""
        return None

    def loss(self, views: Views) -> tuple[Tensor, Metrics]:
        anchors, positives = self.pair(views)
        valid = self.valid(views)
        loss, better = info_nce(anchors, positives, self.tau, self.false_negatives(views), valid)
        weights = torch.ones_like(better, dtype=torch.float32) if valid is None else valid.float()
        return loss, recalls(better, weights)
