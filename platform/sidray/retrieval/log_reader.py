"""Following the item table: what was appended since the last look, as replicas and the writer see it.

    reader = LogReader(uri, since=7, columns=["item_id", "seq", "deleted"])
    with reader.read() as news:   # None: nothing new; else a table in the log's order
        ...                       # an error here, and the rows come again

An append costs a reader its own rows only, and a compaction nothing: what it made of known fragments is known. Where
it joined known ones with new ones, or nobody can tell any more, the known version's ids and seqs tell which rows are
new; once that version is gone, too, rows come again: whoever applies them by `seq` is none the wiser. A rollback takes
rows away; it starts a new epoch (collection.py), in which everybody reads anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from sidray.errors import UserError
from sidray.retrieval import item_table
from sidray.retrieval.exact import Ints

_KEYS = ["item_id", "seq"]  # of a row of the log


class LogReader:
    """Reads forward from version `since`, whose rows count as known."""

    def __init__(self, uri: str, since: int, columns: Sequence[str]) -> None:
        self._uri = uri
        self._columns = list(columns)
        self._dataset: Any = item_table.open_version(uri)
        self._known = _ids(item_table.open_version(uri, since))
        self.version = since

    @contextmanager
    def read(self) -> Iterator[pa.Table | None]:
        """The rows of fragments that are new in the latest version. They are known when the block has ended without an
        error. Raises OSError when the storage does not answer."""
        if self._dataset.latest_version == self.version:
            yield None
            return
        self._dataset.checkout_latest()
        fragments = self._dataset.get_fragments()
        ids = {each.fragment_id for each in fragments}
        known = self._known if self._known <= ids else self._compacted()
        new = [each for each in fragments if each.fragment_id not in known]
        yield self._rows(new, self._known - ids) if new else None
        self.version, self._known = int(self._dataset.version), ids

    def _rows(self, fragments: list[Any], gone: set[int]) -> pa.Table | None:
        """Of these fragments, but for those that were in the known fragments that are gone."""
        known = self._keys_of(gone)
        if known is None:
            return _scan(self._dataset, self._columns, fragments)
        keys = _scan(self._dataset, _KEYS, fragments)
        keys = keys.append_column("place", pa.array(_places(self._dataset, fragments)))
        new = keys.join(known, _KEYS, join_type="left anti")["place"].to_numpy()
        return self._dataset.take(np.sort(new), columns=self._columns) if len(new) else None

    def _keys_of(self, gone: set[int]) -> pa.Table | None:
        """None where there are none, or their version was cleaned up."""
        if not gone:
            return None
        try:
            known: Any = item_table.open_version(self._uri, self.version)
        except UserError:
            return None
        return _scan(known, _KEYS, [each for each in known.get_fragments() if each.fragment_id in gone])

    def _compacted(self) -> set[int]:
        """The known fragments, and those that compactions since the last look made of them alone."""
        known = set(self._known)
        for version in range(self.version + 1, int(self._dataset.version) + 1):
            for group in _rewritten(self._dataset, version):
                if {each.id for each in group.old_fragments} <= known:
                    known |= {each.id for each in group.new_fragments}
        return known


def _places(dataset: Any, fragments: list[Any]) -> Ints:
    """Where the rows of these fragments are in the dataset, in its order: [rows]."""
    own = {each.fragment_id for each in fragments}
    chosen = [np.full(each.count_rows(), each.fragment_id in own) for each in dataset.get_fragments()]
    return np.flatnonzero(np.concatenate(chosen))


def _scan(dataset: Any, columns: list[str], fragments: list[Any]) -> pa.Table:
    return dataset.scanner(columns=columns, fragments=fragments, scan_in_order=True).to_table()


def _rewritten(dataset: Any, version: int) -> list[Any]:
    """What a version rewrote; nothing when that cannot be told, since cleaning up took the version."""
    try:
        operation = dataset.read_transaction(version).operation
    except (OSError, ValueError, AttributeError):
        return []
    return list(operation.groups) if isinstance(operation, lance.LanceOperation.Rewrite) else []


def _ids(dataset: Any) -> set[int]:
    return {fragment.fragment_id for fragment in dataset.get_fragments()}
