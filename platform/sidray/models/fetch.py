"""What a stage reads: from row positions to the tensors that its tasks name. Runs in Ray Data tasks; picklable.

Columns: query, text, item (text + SIDs), image, doc2docid, causal, causal_sids, negatives, clicked, clicked_texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.datasets import open_dataset
from sidray.models.inputs import (
    CachedTexts,
    ImageSource,
    RawTexts,
    Segment,
    TextSource,
    batch_of,
    of_groups,
    padded_rows,
    sid_segment,
)
from sidray.models.prompts import Prompter, load_tokenizer
from sidray.models.settings import ModelSettings
from sidray.models.sources import Sources
from sidray.models.towers import len_tokenizer


@dataclass(frozen=True)
class Fetch:
    """positions [b] -> tensors. `rows` says whether positions are click rows or item rows."""

    sources: Sources
    model: ModelSettings
    rows: str
    columns: frozenset[str]
    drop_text: float = 0.0
    hard_negatives: int = 0
    seed: int = 0

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.open(self.sources.catalogue)

    @cached_property
    def prompter(self) -> Prompter:
        tokenizer = load_tokenizer(storage.local_folder(self.sources.text_weights))
        return Prompter(tokenizer, self.model.text, self.model.prompts, self.catalogue.text_fields)

    @cached_property
    def texts(self) -> TextSource:
        if self.sources.text_cache is not None:
            return CachedTexts(self.sources.text_cache)
        return RawTexts(self.prompter, self.catalogue)

    @cached_property
    def images(self) -> ImageSource:
        return ImageSource(self.catalogue, self.model.image.size, self.sources.image_cache, self.sources.shuffle)

    @cached_property
    def base(self) -> int:
        """Id of SID token 0."""
        return len_tokenizer(storage.local_folder(self.sources.text_weights))

    @cached_property
    def _sids(self) -> Any:
        return open_dataset(storage.join(str(self.sources.sids), "sids.lance"))

    @cached_property
    def _negatives(self) -> Any:
        return open_dataset(storage.join(str(self.sources.negatives), "negatives.lance"))

    @cached_property
    def _clicked(self) -> tuple[Rows, Rows]:
        return self.catalogue.train_clicks_of_query()

    @cached_property
    def _query_skip(self) -> int:
        """Tokens of the query's template before the query itself: they are no targets."""
        before = self.model.prompts.query.split("{query}")[0].rstrip()
        return len(self.prompter.queries([before])[0]) if before else 0

    def __call__(self, positions: Rows) -> dict[str, Tensor]:
        clicks: pa.Table | None = None
        item_rows = positions
        if self.rows == "clicks":
            clicks = self.catalogue.clicks().take(pa.array(positions))
            item_rows = clicks["item_row"].to_numpy().astype(np.int64)
        out = {"item_row": torch.from_numpy(item_rows.copy())}
        if "image" in self.columns:
            out |= self.images(item_rows)
        if self.columns - {"image"}:
            out |= self._text_columns(positions, item_rows, clicks)
        return out

    def _text_columns(self, positions: Rows, item_rows: Rows, clicks: pa.Table | None) -> dict[str, Tensor]:
        items = self.texts.items(item_rows) if self.columns & _ITEM_TEXT else []
        queries: list[Segment] = []
        query_ids = np.zeros(0, np.int64)
        if clicks is not None:
            query_ids = clicks["query_id"].to_numpy().astype(np.int64)
            queries = self.texts.queries(query_ids, clicks["query"].to_pylist()) if self.columns & _QUERY_TEXT else []
        build: dict[str, Callable[[], dict[str, Tensor]]] = {
            "query": lambda: batch_of([[s] for s in queries], "query"),
            "text": lambda: {
                **batch_of([[s] for s in items], "text"),
                "text_group": torch.from_numpy(self.texts.groups(item_rows)),
            },
            "item": lambda: batch_of(self._with_sids(items, item_rows, positions), "item"),
            "doc2docid": lambda: self._doc2docid(items, item_rows),
            "causal": lambda: self._causal([[s.body()] for s in items], queries, "causal"),
            "causal_sids": lambda: self._causal(
                [row[:-1] for row in self._rows_with_sids(items, self._sids_of(item_rows, "sids"))],
                queries,
                "causal_sids",
            ),
            "negatives": lambda: self._negatives_of(positions),
            "clicked": lambda: {"query.clicked": padded_rows(of_groups(*self._clicked, query_ids))},
            "clicked_texts": lambda: {"query.clicked_texts": self._clicked_texts(query_ids)},
        }
        out: dict[str, Tensor] = {}
        for column in sorted(self.columns - {"image"}):
            out |= build[column]()
        return out

    def _clicked_texts(self, query_ids: Rows) -> Tensor:
        """The groups of the texts of all items that each query led to in train: [b, k], ascending."""
        lists = of_groups(*self._clicked, query_ids)
        groups = self.texts.groups(np.concatenate([*lists, np.zeros(0, np.int64)]))
        return padded_rows([np.unique(own) for own in np.split(groups, np.cumsum([len(rows) for rows in lists])[:-1])])

    def _sids_of(self, item_rows: Rows, column: str) -> list[Rows]:
        distinct, back = np.unique(item_rows, return_inverse=True)
        lists = self._sids.take(distinct, columns=[column])[column].to_pylist()
        return [np.asarray(lists[i], np.int64) for i in back]

    def _rows_with_sids(self, items: Sequence[Segment], sids: Sequence[Rows]) -> list[list[Segment]]:
        """text, the prompt's SID prefix, SID tokens, EOS."""
        rows = []
        for item, numbers in zip(items, sids, strict=True):
            width = None if item.states is None else item.states.shape[1]
            prefix = [Segment(np.array(self.prompter.sids_prefix, np.int64))] if width is None and len(numbers) else []
            rows.append([item.body(), *prefix, sid_segment(self.base + numbers, width), item.end()])
        return rows

    def _with_sids(self, items: list[Segment], item_rows: Rows, positions: Rows) -> list[list[Segment]]:
        """Rows with SIDs; a share `drop_text` keeps the SIDs of its picture alone, as a picture query has them."""
        sids = self._sids_of(item_rows, "sids")
        if self.drop_text:
            drop = np.random.default_rng([self.seed, *positions.tolist()]).random(len(items)) < self.drop_text
            empty, picture = self.texts.empty(), self._sids_of(item_rows, "picture_sids")
            items = list(items)
            for i in np.flatnonzero(drop):
                if len(picture[i]):
                    items[i], sids[i] = empty, picture[i]
        return self._rows_with_sids(items, sids)

    def _doc2docid(self, items: list[Segment], item_rows: Rows) -> dict[str, Tensor]:
        rows = [row[:-1] for row in self._rows_with_sids(items, self._sids_of(item_rows, "sids"))]
        return batch_of(rows, "doc2docid", target=-1)

    def _causal(self, items: list[list[Segment]], queries: list[Segment], name: str) -> dict[str, Tensor]:
        rows = []
        for item, query in zip(items, queries, strict=True):
            body = query.body()
            skip = min(self._query_skip, len(body.ids))
            states = body.states
            head = Segment(body.ids[:skip], None if states is None else states[:skip])
            tail = Segment(body.ids[skip:], None if states is None else states[skip:])
            rows.append([*item, head, tail])
        return batch_of(rows, name, target=-1)

    def _negatives_of(self, positions: Rows) -> dict[str, Tensor]:
        """h hard negatives a row: negatives.* [b * h, ...] and negatives.valid [b, h]."""
        h = self.hard_negatives
        lists = self._negatives.take(positions, columns=["negatives"])["negatives"].to_pylist()
        draw = np.random.default_rng([self.seed, *positions.tolist()])
        rows = np.zeros((len(positions), h), np.int64)
        valid = np.zeros((len(positions), h), bool)
        for i, found in enumerate(lists):
            chosen = draw.permutation(np.asarray(found, np.int64))[:h]
            rows[i, : len(chosen)], valid[i, : len(chosen)] = chosen, True
        flat = rows.reshape(-1)
        segments = self._rows_with_sids(self.texts.items(flat), self._sids_of(flat, "sids"))
        return {**batch_of(segments, "negatives"), "negatives.valid": torch.from_numpy(valid)}


SIDS = frozenset({"item", "doc2docid", "causal_sids", "negatives"})  # columns that need semantic IDs
_ITEM_TEXT = frozenset({"text", "item", "doc2docid", "causal", "causal_sids"})
_QUERY_TEXT = frozenset({"query", "causal", "causal_sids"})
OF_CLICKS = _QUERY_TEXT | {"clicked", "clicked_texts", "negatives"}  # columns that item rows lack
COLUMNS = frozenset({"image", "text"}) | SIDS | OF_CLICKS
