"""The generative SID tasks: doc2docid, SMGR eq. (11), and causal prediction with and without SIDs, eq. (12)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sidray.models.towers import Batch, TextInput
from sidray.tasks.base import Metrics, Task
from sidray.tasks.losses import distinct, global_mean
from sidray.tasks.views import ItemKind, Views


def next_tokens(batch: Batch, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Where `name.target` marks a token, the position before it predicts it: (row [n], position [n], token id [n])."""
    target = batch[f"{name}.target"][:, 1:]  # [b, T - 1] bool
    row, position = target.nonzero(as_tuple=True)
    return row, position, batch[f"{name}.ids"][row, position + 1]


class Generative(Task[Views]):
    """Cross-entropy of the marked tokens, averaged over the tokens of the global batch."""

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({self.name})

    def scores(self, views: Views, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, vocabulary] of the hidden states [n, d], and the targets in that vocabulary."""
        return views.towers.text.logits(hidden), targets

    def loss(self, views: Views) -> tuple[Tensor, Metrics]:
        row, position, targets = next_tokens(views.batch, self.name)
        hidden = views.towers.hidden(TextInput.of_batch(views.batch, self.name))  # [b, T, d]
        logits, targets = self.scores(views, hidden[row, position], targets)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        accuracy = (logits.argmax(-1) == targets).float().mean()
        return global_mean(losses, torch.ones_like(losses)), {"token accuracy": accuracy.detach()}


class Doc2DocId(Generative):
    """The item's text -> its SID tokens. The softmax runs over the SID vocabulary: no text token can follow there."""

    name = "doc2docid"
    rows = "items"

    def scores(self, views: Views, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        sids = views.towers.text.sids
        assert sids is not None
        return sids(hidden=hidden), targets - views.towers.base


class Causal(Generative):
    """The item's text -> the query's tokens. `vocabulary`: see StageSettings."""

    name = "causal"
    rows = "clicks"

    def __init__(self, vocabulary: Literal["full", "batch"] = "full") -> None:
        self.vocabulary = vocabulary

    def scores(self, views: Views, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        text = views.towers.text
        if self.vocabulary == "full":
            return text.logits(hidden), targets
        tokens = distinct(targets, text.vocabulary)
        return text.logits_of(hidden, tokens), torch.searchsorted(tokens, targets)


class CausalSids(Causal):
    """The item's text and SIDs -> the query's tokens."""

    name = "causal_sids"
