"""What finished rows found, kept beside the report: ranks click by click, and what they cost and were made with.

    kept = Kept(folder, "smgr-hm");  kept.add("tiger", seed, ranks, about);  kept.find("tiger", seed, key)

So the report and its tests follow from what is committed, and seeds of several machines stand in one report. One
Parquet file for each seed; a row counts as long as its step's key is the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidray.evaluation.metrics import Ints, Ranks

LIMIT = 100  # ranks from here on are one: no metric of the report looks further
_ABOUT, _TIES = "rows", " (ties)"


class KeptRow(NamedTuple):
    """`ranks`: of each click or pair; `about`: key, train_s, samples, seconds (of each step), made."""

    ranks: Ranks
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """The rows of one recipe in `folder`, in files that start with `name`."""

    folder: Path
    name: str
    _seeds: dict[int, dict[str, KeptRow]] = field(default_factory=dict)

    def find(self, label: str, seed: int, key: str) -> KeptRow | None:
        """A row as it was added; None when it was not, or by a step of another key."""
        row = self._rows(seed).get(label)
        return row if row is not None and row.about["key"] == key else None

    def add(self, label: str, seed: int, ranks: Ranks, about: Mapping[str, Any]) -> None:
        """In place of what was kept of the row; of all rows when there were more clicks or fewer then."""
        size = len(ranks.greater)
        rows = {name: row for name, row in self._rows(seed).items() if len(row.ranks.greater) == size}
        self._seeds[seed] = {**rows, label: KeptRow(Ranks(np.minimum(ranks.greater, LIMIT), ranks.equal), about)}
        self._write(seed)

    def _rows(self, seed: int) -> dict[str, KeptRow]:
        if seed not in self._seeds:
            path = self._path(seed)
            self._seeds[seed] = _read(path) if path.exists() else {}
        return self._seeds[seed]

    def _write(self, seed: int) -> None:
        columns = {}
        for label, (ranks, _) in self._seeds[seed].items():
            columns[label] = ranks.greater.astype(np.uint8)
            columns[label + _TIES] = ranks.equal.astype(np.int32)
        table = pa.table(columns)
        about = {label: dict(row.about) for label, row in self._seeds[seed].items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(self._path(seed), table.schema, compression="zstd", store_schema=False) as file:
            file.write_table(table)
            file.add_key_value_metadata({_ABOUT: json.dumps(about)})

    def _path(self, seed: int) -> Path:
        return self.folder / f"{self.name}-{seed + 1}.parquet"


def _read(path: Path) -> dict[str, KeptRow]:
    table = pq.read_table(path)

    def column(name: str) -> Ints:
        return np.asarray(table[name].to_numpy()).astype(np.int64)

    about: dict[str, Any] = json.loads(table.schema.metadata[_ABOUT.encode()])
    return {label: KeptRow(Ranks(column(label), column(label + _TIES)), about[label]) for label in about}
