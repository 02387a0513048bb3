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
import numpy.typing as npt

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import read_vectors
from sidray.errors import UserError
from sidray.evaluation import baselines
from sidray.evaluation.baselines import Pool
from sidray.evaluation.metrics import recall
from sidray.tokenizers.base import SemanticTokenizer

KEPT = 0.99  # of the best size's recall
COLUMN = {"text": "text", "image": "image", "item": "vector"}  # of an embed step's items.lance, by modality


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
    """Recall@10 of the validation clicks when a modality's item vectors are replaced by their reconstructions.

    Queries are MLP_Q's vectors for the item modality, and h_q for h_text and h_image, as in pretraining."""

    catalogue: Catalogue
    embed: str

    @cached_property
    def _pool(self) -> tuple[Pool, npt.NDArray[np.int64]]:
        """The clicks over the candidates alone, and the query_id of each click."""
        clicks = self.catalogue.clicks("valid")
        if not clicks.num_rows:
            raise UserError(
                "tokenizer.entries lists several sizes, and there are no validation clicks to choose by",
                "give one size, or add clicks of the split valid",
            )
        rows = self.catalogue.clicked_items
        at = np.searchsorted(rows, clicks["item_row"].to_numpy())
        local = clicks.set_column(clicks.schema.get_field_index("item_row"), "item_row", [at])
        partitions = self.catalogue.items(rows, ["partition"])["partition"]
        return Pool.of(local, partitions, np.arange(len(rows))), clicks["query_id"].to_numpy()

    def __call__(self, tokenizer: SemanticTokenizer) -> float:
        pool, query_ids = self._pool
        column = COLUMN[tokenizer.modality]
        items = np.array(read_vectors(storage.join(self.embed, "items.lance"), column, self.catalogue.clicked_items))
        present = np.abs(items).sum(1) > 0
        items[present] = tokenizer.quantise(items[present])
        query_column = "vector" if tokenizer.modality == "item" else "text"
        queries = read_vectors(storage.join(self.embed, "queries.lance"), query_column)
        return float(recall(*baselines.vectors(pool, queries[query_ids], items), 10).mean())
