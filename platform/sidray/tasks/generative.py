"""The generative SID tasks: doc2docid, SMGR eq. (11), and causal prediction with and without SIDs, eq. (12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidray.models.towers import Batch
from sidray.tasks.base import Metrics, Task
from sidray.tasks.losses import distinct, global_mean
from sidray.tasks.views import ItemKind, Views

Logits = Callable[[Tensor], Tensor]


def next_tokens(batch: Batch, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Where `name.target` marks a token, the position before it predicts it: (row [n], position [n], token id [n])."""
    target = batch[f"{name}.target"][:, 1:]  # [b, T - 1] bool
    row, position = target.nonzero(as_tuple=True)
    return row, position, batch[f"{name}.ids"][row, position + 1]


class Generative(Task[Views]):
    """Cross-entropy of the marked tokens, averaged over the tokens of the global batch."""

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({self.name})

    def vocabulary_of(self, views: Views, targets: Tensor) -> tuple[Logits, Tensor]:
        """The softmax's vocabulary: hidden states [n, d] -> logits [n, vocabulary], and the targets [n] in it."""
        return views.towers.text.logits, targets

    def loss(self, views: Views) -> tuple[Tensor, Metrics]:
        row, position, targets = next_tokens(views.batch, self.name)
        hidden = views.hidden(self.name)[row, position]  # [n, d]
        logits, targets = self.vocabulary_of(views, targets)
        losses, right = cross_entropy(logits, hidden, targets, views.chunk * -(-len(targets) // len(views)))
        return global_mean(losses, torch.ones_like(losses)), {"token accuracy": right.float().mean()}


def cross_entropy(logits: Logits, hidden: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Of each target [n] its loss, and whether it scores highest. With `chunk` > 0 the logits, which take most of the
    memory, are of so many targets at a time and made again in the backward pass."""

    def scored(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits(hidden)
        return F.cross_entropy(scores.float(), targets, reduction="none"), scores.detach().argmax(-1) == targets

    if not chunk or len(targets) <= chunk:
        return scored(hidden, targets)
    parts = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    losses, right = zip(*(checkpoint(scored, *part, use_reentrant=False) for part in parts), strict=True)
    return torch.cat(losses), torch.cat(right)


class Doc2DocId(Generative):
    """The item's text -> its SID tokens. The softmax runs over the SID vocabulary: no text token can follow there."""

    name = "doc2docid"
    rows = "items"

    def vocabulary_of(self, views: Views, targets: Tensor) -> tuple[Logits, Tensor]:
        sids = views.towers.text.sids
        assert sids is not None
        return lambda hidden: sids(hidden=hidden), targets - views.towers.base


class Causal(Generative):
    """The item's text -> the query's tokens. `vocabulary`: see StageSettings."""

    name = "causal"
    rows = "clicks"

    def __init__(self, vocabulary: Literal["full", "batch"] = "full") -> None:
        self.vocabulary = vocabulary

    def vocabulary_of(self, views: Views, targets: Tensor) -> tuple[Logits, Tensor]:
        text = views.towers.text
        if self.vocabulary == "full":
            return text.logits, targets
        tokens = distinct(targets, text.vocabulary)
        return lambda hidden: text.logits_of(hidden, tokens), torch.searchsorted(tokens, targets)


class CausalSids(Causal):
    """The item's text and SIDs -> the query's tokens."""

    name = "causal_sids"
