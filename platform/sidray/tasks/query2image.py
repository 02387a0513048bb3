"""query2image, SMGR eq. (6): the query against the item's picture.

Items with an equal picture, and those that the query led to in train, are no negatives.
"""

from __future__ import annotations

from torch import Tensor

from sidray.tasks.base import Contrastive
from sidray.tasks.views import ItemKind, Views


class Query2Image(Contrastive):
    name = "query2image"
    rows = "clicks"

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"query", "image", "clicked"})

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        return views.h_query, views.h_image

    def false_negatives(self, views: Views) -> Tensor:
        return views.same("image_group") | views.clicked

    def valid(self, views: Views) -> Tensor | None:
        return views.batch["image.present"]
