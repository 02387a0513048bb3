"""query2text, SMGR eq. (6): the query against the item's text.

Candidates with the text of the item, or of one that the query led to in train, are no negatives.
"""

from __future__ import annotations

from torch import Tensor

from sidray.tasks.base import Contrastive
from sidray.tasks.views import ItemKind, Views


class Query2Text(Contrastive):
    name = "query2text"
    rows = "clicks"

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"query", "text", "clicked_texts"})

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        return views.h_query, views.h_text

    def false_negatives(self, views: Views) -> Tensor:
        return views.same("text_group") | views.clicked_texts
