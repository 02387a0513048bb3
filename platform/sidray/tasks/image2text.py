"""image2text, SMGR eq. (5): the picture against the text of its item. Items with an equal text are no negatives."""

from __future__ import annotations

from torch import Tensor

from sidray.tasks.base import Contrastive
from sidray.tasks.views import ItemKind, Views


class Image2Text(Contrastive):
    name = "image2text"
    rows = "items"

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"image", "text"})

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        return views.h_image, views.h_text

    def false_negatives(self, views: Views) -> Tensor:
        return views.same("text_group")

    def valid(self, views: Views) -> Tensor | None:
        return views.batch["image.present"]
