"""One consistent state of what is searchable: an index, the delta over it, and how the two answer together.

A View is never changed; a replica swaps one for the next, and a search holds on to the one that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np

from sidray.retrieval.coarse import KS
from sidray.retrieval.delta import Delta
from sidray.retrieval.exact import Floats, Ints
from sidray.retrieval.index import PartitionedIndex
from sidray.serving.schemas import IndexKey

HIT = ("item_id", "title", "partition")
_MARGIN = 16  # rows asked for beyond k, for hits that turn out hidden


@dataclass(frozen=True)
class View:
    """`table`: at the version that the index was built from; `table_version`: up to which the view knows all of it."""

    run: str
    generation: str
    epoch: int
    table: lance.LanceDataset
    table_version: int
    delta: Delta

    @property
    def index(self) -> PartitionedIndex:
        return self.delta.index

    @property
    def key(self) -> IndexKey:
        manifest = self.index.manifest
        return IndexKey(
            run=self.run,
            model_key=manifest.model_key,
            generation=self.generation,
            table_version=self.table_version,
        )

    @property
    def count(self) -> int:
        """Items that can be found."""
        live = sum(len(rows) for rows in self.delta.partitions.values())
        return self.index.manifest.count - len(self.delta.hidden) + live

    def has_partition(self, name: str) -> bool:
        return self.index.has_partition(name) or name in self.delta.partitions

    def partition_names(self) -> set[str]:
        return {*self.index.partitions, *self.delta.partitions}

    def search(
        self, vector: Floats, k: int, partitions: Sequence[str] | None, exclude: Sequence[str], exact: bool = False
    ) -> list[dict[str, Any]]:
        """The k nearest items of a unit vector [d], best first, as their fields and `score`. Of equal scores the
        index's row comes first. `exact`: in partitions that are cut into lists, too."""
        left_out = self._left_out(exclude)
        scores, rows = self._search_index(vector, k, partitions, left_out[left_out >= 0], exact)
        new_scores, new_rows = self.delta.search(vector, partitions)
        kept = ~np.isin(new_rows, _delta_rows(self.delta, exclude))
        scores = np.concatenate([scores, new_scores[kept]])
        places = np.concatenate([rows, -1 - new_rows[kept]])  # below zero: rows of the delta
        best = np.argsort(-scores, kind="stable")[:k]
        found = self._items(places[best])
        return [{**item, "score": float(score)} for item, score in zip(found, scores[best], strict=True)]

    def vector_of(self, item_id: str) -> Floats | None:
        """[d], of unit length; None for an item that cannot be found."""
        place = self._place(item_id)
        if place is None:
            return None
        return np.asarray(self.index.vectors[place] if place >= 0 else self.delta.vectors[-1 - place])

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Its fields; None for an item that cannot be found."""
        place = self._place(item_id)
        return None if place is None else self._items(np.array([place]))[0]

    def thumbnail(self, item: dict[str, Any]) -> bytes | None:
        """The picture that the table keeps of an item as `item` gave it; None when there is none."""
        picture: bytes | None
        if "thumbnail" in item:  # rows of the delta bring it along
            picture = item["thumbnail"]
        else:
            picture = self.table.take([item["position"]], columns=["thumbnail"])["thumbnail"][0].as_py()
        return picture

    def _search_index(
        self, vector: Floats, k: int, partitions: Sequence[str] | None, left_out: Ints, exact: bool
    ) -> tuple[Floats, Ints]:
        """At most k rows that are not left out. Asks for more rows until enough of them are left, or there are none:
        those that turn out hidden are few among what is looked at for k, and no reason to look at a whole partition."""
        names = None if partitions is None else [name for name in partitions if self.index.has_partition(name)]
        if names == [] or not self.index.manifest.count:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        near, spare = k, min(len(left_out), _MARGIN)
        while True:
            scores, rows = self.index.search(vector[None], near, names, exact, spare)
            found = rows[0] >= 0
            kept = found & ~np.isin(rows[0], left_out)
            if kept.sum() >= k or not found.all():
                return scores[0][kept][:k], rows[0][kept][:k]
            wanted = min(4 * (near + spare), k + len(left_out))
            near = max(k, min(wanted, KS[-1]))
            spare = wanted - near

    def _left_out(self, exclude: Sequence[str]) -> Ints:
        return np.union1d(self.delta.hidden, self.index.rows_of(exclude)) if exclude else self.delta.hidden

    def _place(self, item_id: str) -> int | None:
        """A row of the index, or -1 - a row of the delta."""
        changed = self.delta.row_of(item_id)
        if changed is not None:
            return None if changed < 0 else -1 - changed
        row = int(self.index.rows_of([item_id])[0])
        return row if row >= 0 else None

    def _items(self, places: Ints) -> list[dict[str, Any]]:
        own = iter(self.index.fields(places[places >= 0]))
        return [next(own) if place >= 0 else self.delta.items[-1 - place] for place in places]


def _delta_rows(delta: Delta, exclude: Sequence[str]) -> list[int]:
    return [row for item_id in exclude if (row := delta.row_of(item_id)) is not None]
