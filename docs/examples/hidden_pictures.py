"""query2item for shops where many items have no picture: training hides three pictures in ten, so that an item's text
alone has to do for its vector, too.

PYTHONPATH=docs/examples sidray run docs/examples/hidden_pictures.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidray.tasks import Contrastive
from sidray.tasks.views import ItemKind, Views

HIDDEN = 0.3  # share of the pictures that a batch hides


class Query2ItemHidden(Contrastive):
    """SMGR eq. (6) with item vectors some of which are made as those of items without a picture are."""

    name = "query2item_hidden"  # of its metrics
    rows = "clicks"  # a row of a batch is a click: a query and its item
    version = 1  # part of the key of the stage: raise it when the lines below change

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"query", "text", "image", "clicked"})

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        """Queries and items, [b, dimension] each."""
        image = views.h_image  # [b, d]; zeros for an item without a picture
        if views.towers.training:  # on held-out rows every picture counts
            image = image * (torch.rand(len(image), 1, device=image.device) >= HIDDEN)
        return views.query, views.towers.item(views.h_text, image)

    def false_negatives(self, views: Views) -> Tensor:
        """[b, world * b]: the query led to these items, too, so they are no negatives."""
        return views.clicked
