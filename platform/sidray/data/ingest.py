"""Contract tables in, a catalogue out: validated, bad rows quarantined, stored as Lance.

    summary = ingest(DataSettings(source="tables", items="s3://shop/items", clicks="clicks.parquet"), "out")

`Catalogue.open("out")` reads it. Runs on the Ray that is connected, or starts one.
"""

from __future__ import annotations

from typing import Any, Literal

from sidray import storage
from sidray.data.catalogue import MANIFEST
from sidray.data.contract import check_renamed, check_schema
from sidray.data.items import write_items
from sidray.data.quarantine import Quarantine
from sidray.data.relations import RelationWriter
from sidray.data.settings import CONTRACT, DataSettings
from sidray.data.sources import tables_of
from sidray.data.tables import open_table
from sidray.errors import UserError

VERSION = 2  # of the catalogue's layout and rules: part of the key of the step


Wanted = Literal["clicks", "pairs"]


def ingest(settings: DataSettings, output: str, wanted: Wanted | None = "clicks") -> dict[str, Any]:
    """Writes the catalogue of `settings` to the folder `output`; returns the summary that the step's manifest keeps.

    Raises UserError for tables that break the contract, too many bad rows, no item, and without the table that is
    wanted or a row of it in the train split."""
    work_folder = storage.join(output, "tables")
    uris = tables_of(settings, work_folder)
    if wanted == "clicks" and "clicks" not in uris:
        raise UserError("there are no clicks to train on", "set data.clicks: queries and the items they led to")
    if wanted == "pairs" and not {"pairs", "events"} & set(uris):
        remedy = "set data.pairs: items and their related items; or data.events, from which pairs are made"
        raise UserError("there are no pairs to train on", remedy)
    tables = {name: open_table(uri, name) for name, uri in uris.items()}
    for table in tables.values():
        check_schema(table, settings)
    check_renamed(tables.values(), settings)
    storage.make_folder(output)
    with Quarantine(storage.join(output, "quarantine"), settings.max_bad_fraction) as quarantine:
        index = write_items(tables["items"], settings, storage.join(output, "items.lance"), quarantine)
        writer = RelationWriter(index, settings, output, quarantine)
        relations = writer.write(tables)
    if wanted is not None and not relations.get(wanted, {}).get("train"):
        source = wanted if wanted in uris else "events"
        raise UserError(
            f"data.{source}: {uris[source]} gives no {wanted} in the train split (there are {relations.get(wanted)})",
            f"give {wanted} the split 'train', or leave that column out: see data.valid_fraction, data.test_fraction",
        )
    storage.delete(work_folder)  # what a source made; the catalogue holds it all
    summary = {
        "items": len(index.row_of),
        "images": index.images,
        "image_bytes": index.image_bytes,
        "partitions": len(writer.partitions),
        **relations,
        "quarantined": dict(sorted(quarantine.counts.items())),
        "skipped": {what: count for what, count in sorted(writer.skipped.items()) if count},
        "bytes": storage.size_of(output),
    }
    _write_manifest(output, settings, writer.partitions, summary)
    print("\n".join(report_lines(summary)))
    return summary


def _write_manifest(output: str, settings: DataSettings, partitions: list[str], summary: dict[str, Any]) -> None:
    """Written last: a folder without it is no catalogue."""
    manifest = {
        "version": VERSION,
        "items": summary["items"],
        "text_fields": settings.text_fields,
        "partitions": partitions,
        "tables": [name for name in CONTRACT if name in summary],
        "summary": summary,
    }
    storage.write_json(storage.join(output, MANIFEST), manifest)


def report_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for people: what was stored, and every reason for which rows were set aside."""
    lines = [
        f"catalogue: {summary['items']:,} items, {summary['images']:,} with a picture, "
        f"{summary['partitions']:,} partitions, {summary['bytes'] / 2**20:.1f} MiB"
    ]
    for name in ("clicks", "pairs"):
        if name in summary:
            lines.append(f"{name}: " + ", ".join(f"{split} {count:,}" for split, count in summary[name].items()))
    if "events" in summary:
        lines.append(f"events: {summary['events']:,}")
    lines += [f"quarantined: {count:,} x {reason}" for reason, count in summary["quarantined"].items()]
    return lines + [f"left out: {count:,} x {what}" for what, count in summary["skipped"].items()]
