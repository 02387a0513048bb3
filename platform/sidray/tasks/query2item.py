"""query2item, SMGR eq. (6): MLP_Q of the query against MLP_I of the item, with random and with hard negatives.

Only the same item and the query's other train clicks are false negatives: siblings with an equal text stay negatives.
"""

from __future__ import annotations

from torch import Tensor

from sidray.tasks.base import ITEM_COLUMNS, Contrastive, Metrics, Task
from sidray.tasks.losses import hard_info_nce
from sidray.tasks.views import ItemKind, Views


class Query2Item(Contrastive):
    name = "query2item"
    rows = "clicks"

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return ITEM_COLUMNS[item_kind] | {"query", "clicked"}

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        return views.query, views.item

    def false_negatives(self, views: Views) -> Tensor:
        return views.clicked


class Query2ItemHard(Task[Views]):
    """The same pair against the query's hard negatives: relevant by score and never clicked for it in train."""

    name = "query2item_hard"
    rows = "clicks"

    def __init__(self, tau: float = 0.05) -> None:
        self.tau = tau

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return ITEM_COLUMNS[item_kind] | {"query", "negatives"}

    def loss(self, views: Views) -> tuple[Tensor, Metrics]:
        valid = views.batch["negatives.valid"]  # [b, h]
        flat = views.towers.item(views.encode_text("negatives"))  # [b * h, dimension]
        negatives = flat.view(*valid.shape, -1)
        return hard_info_nce(views.query, views.item, negatives, valid, self.tau), {}
