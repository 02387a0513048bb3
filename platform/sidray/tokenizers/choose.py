"""Codebook sizes chosen on validation: the smallest whose reconstructions still find what the vectors found.

    sizes = choose({"item": [small, large]}, ValidationRecall(catalogue, embed_uri))
    sizes.chosen["item"];  sizes.recalls["item"]   # {16: .31, 32: .34}

Larger codebooks reconstruct better, and cost tokens that doc2docid has to learn: hence the smallest sufficient one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sidray.data.catalogue import Catalogue
from sidray.errors import UserError
from sidray.evaluation import baselines
from sidray.evaluation.clicks import Clicks, Representation, Vectors
from sidray.evaluation.metrics import recall
from sidray.tokenizers.base import SemanticTokenizer

KEPT = 0.99  # of the best size's recall
KIND: dict[str, Representation] = {"text": "text", "image": "image", "item": "vector"}  # also its column


class Sizes(NamedTuple):
    """`recalls` by modality and size, where there was a choice."""

    chosen: dict[str, SemanticTokenizer]
    recalls: dict[str, dict[int, float]]


def choose(candidates: Mapping[str, Sequence[SemanticTokenizer]], score: Callable[[SemanticTokenizer], float]) -> Sizes:
    """The tokenizer of each modality; `score` is asked only where there are several."""
    chosen, recalls = {}, {}
    for modality, tokenizers in candidates.items():
        chosen[modality] = tokenizers[0]
        if len(tokenizers) > 1:
            found = {tokenizer.entries: score(tokenizer) for tokenizer in tokenizers}
            size = smallest_sufficient(found)
            chosen[modality] = next(t for t in tokenizers if t.entries == size)
            recalls[modality] = found
    return Sizes(chosen, recalls)


def smallest_sufficient(recalls: Mapping[int, float]) -> int:
    """The smallest size with at least `KEPT` of the best size's recall."""
    best = max(recalls.values())
    return min(size for size, value in recalls.items() if value >= KEPT * best)


@dataclass(frozen=True)
class ValidationRecall:
    """Recall@10 of the validation clicks when a modality's item vectors are replaced by their reconstructions."""

    catalogue: Catalogue
    embed: str

    @cached_property
    def _clicks(self) -> Clicks:
        if not self.catalogue.clicks("valid").num_rows:
            raise UserError(
                "tokenizer.entries lists several sizes, and there are no validation clicks to choose by",
                "give one size, or add clicks of the split valid",
            )
        return Clicks.of(self.catalogue, "valid")

    def __call__(self, tokenizer: SemanticTokenizer) -> float:
        queries, items = Vectors(self.embed, KIND[tokenizer.modality]).load(self._clicks)
        present = np.abs(items).sum(1) > 0
        items = items.copy()
        items[present] = tokenizer.quantise(items[present])
        return float(recall(*baselines.vectors(self._clicks.pool, queries, items), 10).mean())
