"""The ingested catalogue: Lance tables with random access, opened by URI in any process.

    catalogue = Catalogue.open("runs/steps/ingest-1a2b/attempt-0")
    catalogue.items(rows, ["title", "image"])  # pa.Table in the order of `rows`

An item is its row position in items.lance (0..n_items-1); clicks and pairs refer to items by it. The folder is what
`data/ingest.py` writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sidray import storage
from sidray.datasets import open_dataset
from sidray.errors import UserError

Rows = npt.NDArray[np.int64]
MANIFEST = "catalogue.json"
MIN_HELD_OUT = 50  # items: recall among fewer tells little


class Catalogue:
    """Read access to one immutable catalogue. Picklable: another process reopens the tables when it first reads.

    `shuffle_pairs`: seed of the control that permutes the related items over the train pairs."""

    def __init__(self, uri: str, manifest: dict[str, Any], shuffle_pairs: int | None = None) -> None:
        self.uri = uri
        self.manifest = manifest
        self.shuffle_pairs = shuffle_pairs

    @classmethod
    def open(cls, uri: str, shuffle_pairs: int | None = None) -> Catalogue:
        """Opens the folder that `ingest` wrote; raises UserError when it is none."""
        uri = storage.absolute(uri)
        if not storage.exists(storage.join(uri, MANIFEST)):
            raise UserError(
                f"{uri} is not a catalogue: it has no {MANIFEST}", "give the output folder of the ingest step"
            )
        return cls(uri, storage.read_json(storage.join(uri, MANIFEST)), shuffle_pairs)

    def __getstate__(self) -> dict[str, Any]:  # no open handle, no cached table
        return {"uri": self.uri, "manifest": self.manifest, "shuffle_pairs": self.shuffle_pairs}

    @property
    def n_items(self) -> int:
        return int(self.manifest["items"])

    @property
    def n_images(self) -> int:
        """The number of items with a picture."""
        return int(self.manifest["summary"]["images"])

    @property
    def text_fields(self) -> list[str]:
        """The kept text columns beside title, in the order of the prompt."""
        return list(self.manifest["text_fields"])

    def has(self, table: str) -> bool:
        """Whether the catalogue has this table: items, clicks, pairs or events."""
        return table in self.manifest["tables"]

    def items(self, rows: Rows | None, columns: Iterable[str]) -> pa.Table:
        """The named columns of these item rows, in their order (repetitions allowed), or of all items."""
        if rows is None:
            return self._items.to_table(columns=list(columns))
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.n_items):
            raise IndexError(f"item rows {rows.min()}..{rows.max()} of a catalogue of {self.n_items}")
        return self._items.take(rows, columns=list(columns))

    def texts(self, rows: Rows) -> list[str]:
        """Title and text fields of these items, joined."""
        columns = ["title", *self.text_fields]
        items = self.items(rows, columns)
        joined = pc.binary_join_element_wise(*(pc.fill_null(items[column], "") for column in columns), " ")
        return [str(text) for text in joined.to_pylist()]

    def clicks(self, split: str | None = None) -> pa.Table:
        """query, query_id, item_row, partition, split, ..., and click_row (its own position); all, or of one split."""
        return self._clicks if split is None else _of_split(self._clicks, split)

    def pairs(self, split: str | None = None) -> pa.Table:
        """item_row, related_row, split, score, and pair_row (its own position); all, or of one split. Split 'mixed':
        the two items are in different splits, use it nowhere."""
        return self._pairs if split is None else _of_split(self._pairs, split)

    @cached_property
    def train_items(self) -> Rows:
        """int64, sorted: the rows of the items that have a train click."""
        return np.unique(_numpy(self.clicks("train")["item_row"]))

    @cached_property
    def held_out_items(self) -> Rows:
        """int64, sorted: the rows of the items that have a valid click and no train click; none when they are fewer
        than MIN_HELD_OUT."""
        rows = np.setdiff1d(_numpy(self.clicks("valid")["item_row"]), self.train_items)
        return rows if len(rows) >= MIN_HELD_OUT else rows[:0]

    @cached_property
    def clicked_items(self) -> Rows:
        """int64, sorted: the rows of the items that occur in any click, the candidates of an evaluation."""
        return np.unique(_numpy(self._clicks["item_row"]))

    def paired_items(self, split: str) -> Rows:
        """int64, sorted: the rows of the items on either side of a pair of the split."""
        pairs = self.pairs(split)
        return np.unique(np.concatenate([_numpy(pairs["item_row"]), _numpy(pairs["related_row"])]))

    def train_clicks_of_query(self) -> tuple[Rows, Rows]:
        """CSR over query_id: (offsets [queries + 1], item rows). Query q led in train to the items
        rows[offsets[q]:offsets[q + 1]], sorted and distinct; none for a query that train does not have."""
        clicks = self.clicks("train")
        pairs = np.stack([_numpy(clicks["query_id"]), _numpy(clicks["item_row"])], axis=1)
        pairs = np.unique(pairs, axis=0)
        return _offsets(pairs[:, 0], self.n_queries), np.ascontiguousarray(pairs[:, 1])

    def train_clicks_of_item(self) -> tuple[Rows, Rows]:
        """CSR over train_items: (offsets [train items + 1], click rows). The i-th train item owns the train clicks
        rows[offsets[i]:offsets[i + 1]], sorted, at least one: what `plan.one_click_per_item` takes."""
        clicks = self.clicks("train")
        item_rows, click_rows = _numpy(clicks["item_row"]), _numpy(clicks["click_row"])
        order = np.lexsort((click_rows, item_rows))
        return _offsets(np.searchsorted(self.train_items, item_rows[order]), len(self.train_items)), click_rows[order]

    def train_related(self) -> tuple[Rows, Rows]:
        """CSR over all items: (offsets [items + 1], item rows). Train pairs relate item i to the items
        rows[offsets[i]:offsets[i + 1]], on whichever side of a pair they stand: sorted and distinct."""
        pairs = self.pairs("train")
        sides = [_numpy(pairs["item_row"]), _numpy(pairs["related_row"])]
        both = np.stack([np.concatenate(sides), np.concatenate(sides[::-1])], axis=1)
        both = np.unique(both, axis=0)
        return _offsets(both[:, 0], self.n_items), np.ascontiguousarray(both[:, 1])

    @cached_property
    def n_queries(self) -> int:
        """Number of distinct query texts over all splits: query_id is below it."""
        return int(pc.max(self._clicks["query_id"]).as_py() or 0) + 1 if self._clicks.num_rows else 0

    @cached_property
    def _items(self) -> Any:
        return open_dataset(storage.join(self.uri, "items.lance"))

    @cached_property
    def _clicks(self) -> pa.Table:
        clicks = self._table("clicks")
        return clicks.append_column("click_row", pa.array(np.arange(clicks.num_rows)))

    @cached_property
    def _pairs(self) -> pa.Table:
        pairs = self._table("pairs")
        if self.shuffle_pairs is not None:
            pairs = _shuffled(pairs, self.shuffle_pairs)
        return pairs.append_column("pair_row", pa.array(np.arange(pairs.num_rows)))

    def _table(self, name: str) -> pa.Table:
        if not self.has(name):
            raise UserError(f"the catalogue has no {name}", f"set data.{name} to a table of the contract")
        return open_dataset(storage.join(self.uri, f"{name}.lance")).to_table()


def _shuffled(pairs: pa.Table, seed: int) -> pa.Table:
    """The train rows with each other's related items."""
    related = _numpy(pairs["related_row"]).copy()
    train = np.flatnonzero(pc.equal(pairs["split"], "train").to_numpy())
    related[train] = related[np.random.default_rng(seed).permutation(train)]
    place = pairs.schema.get_field_index("related_row")
    return pairs.set_column(place, "related_row", pa.array(related, pairs.schema.field(place).type))


def _of_split(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _numpy(column: pa.ChunkedArray) -> Rows:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _offsets(sorted_groups: Rows, groups: int) -> Rows:
    """offsets[g] is where group g starts in `sorted_groups` (group numbers, ascending): int64 [groups + 1]."""
    return np.searchsorted(sorted_groups, np.arange(groups + 1)).astype(np.int64)
