"""A call of `sidray embed` that another one continues when it was killed: its catalogue, its number, its quarantine.

    with attempt(run, items, folder, max_bad_fraction) as own:
        own.catalogue                                # ingested once, whatever is killed after that
        own.check(refused);  own.set_aside(refused)  # [(item_id, reason)]

Files in the folder while it lasts: lease.json (a second call ends with exit code 2), attempt.json, catalogue/. What
stays: quarantine/.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import MANIFEST, Catalogue
from sidray.data.contract import column_names
from sidray.data.ingest import ingest
from sidray.data.quarantine import SCHEMA, Quarantine
from sidray.data.settings import DataSettings
from sidray.data.tables import TableFiles, fingerprint, open_table
from sidray.embedding.parts import Parts
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.lease import Lease

Refused = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Attempt:
    """`number`: of its parts; `source`: the URI of the items."""

    folder: str
    number: int
    source: str
    catalogue: Catalogue
    max_bad_fraction: float
    lease: Lease

    def check(self, refused: Refused) -> None:
        """Raises UserError when the encoder has refused too many. The next call tries these again, for it may have been
        the machine, and takes all others over from the parts that are written."""
        if len(refused) > self.max_bad_fraction * self.catalogue.n_items:
            self.set_aside(refused)
            note = _note(self.folder)
            storage.write_json(note, {**storage.read_json(note), "number": self.number + 1})
            raise UserError(
                f"{len(refused)} of {self.catalogue.n_items} items could not be encoded, more than "
                f"max_bad_fraction={self.max_bad_fraction} allows (the last one, {refused[-1][0]!r}: {refused[-1][1]})",
                f"mend them: {storage.join(self.folder, 'quarantine')} lists them; or raise --max-bad-fraction; "
                "where it was the machine, run the same command again",
            )

    def set_aside(self, refused: Refused) -> dict[str, int]:
        """Writes quarantine/: what the ingest refused, and these. Returns reason -> rows, of both."""
        folder, made = storage.join(self.folder, "quarantine"), storage.join(self.catalogue.uri, "quarantine")
        storage.delete(folder)
        if storage.exists(made):
            storage.copy(made, folder)
        with Quarantine(folder, self.max_bad_fraction) as quarantine:
            names, reasons = [item_id for item_id, _ in refused], [reason for _, reason in refused]
            places = {"file": [self.source] * len(refused), "row": [None] * len(refused)}
            quarantine.add("embed", pa.table(places | {"value": names, "reason": reasons}, schema=SCHEMA))
        return dict(Counter(self.catalogue.manifest["summary"]["quarantined"]) + quarantine.counts)


@contextmanager
def attempt(run: RunFolder, items: str, folder: str, max_bad_fraction: float) -> Iterator[Attempt]:
    """The one that a killed call left in the folder, if it was of these items and this model; else a new one."""
    data = run.recipe.data
    table = open_table(items, "items")  # one that is none is told before anything is written
    settings = DataSettings(
        source="tables",
        items=items,
        text_fields=data.text_fields,
        columns=_renamed(table, data),
        max_image_pixels=data.max_image_pixels,
        max_bad_fraction=max_bad_fraction,
    )
    shard_rows = run.recipe.embedding.shard_rows  # parts of another size are not its own
    identity = [settings.model_dump(exclude={"max_bad_fraction"}), fingerprint(items), run.model_key, shard_rows]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    note, work = _note(folder), storage.join(folder, "catalogue")
    with Lease(folder) as lease:
        left = storage.read_json(note) if storage.exists(note) else None
        if left is None or left["name"] != name:
            left = {"name": name, "number": Parts.last(storage.join(folder, "items.parquet")) + 1}
            storage.delete(work)
            storage.write_json(note, left)
        if not storage.exists(storage.join(work, MANIFEST)):
            storage.delete(work)
            ingest(settings, work, wanted=None)
        yield Attempt(folder, left["number"], items, Catalogue.open(work), max_bad_fraction, lease)
        storage.delete(note)
        storage.delete(work)


def _note(folder: str) -> str:
    return storage.join(folder, "attempt.json")


def _renamed(table: TableFiles, data: DataSettings) -> dict[str, str]:
    """Of the run's data.columns those of items; a name that its clicks alone may have had is left out where the table
    has the contract's own."""
    there = {name for _, schema in table.schemas for name in schema.names}
    own = {name: given for name, given in data.columns.items() if name in column_names("items", data)}
    return {name: given for name, given in own.items() if given in there or name not in there}
