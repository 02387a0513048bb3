"""`sidray embed`: any contract item table through a finished run, cluster-wide. What is embedded already is not again.

    batch_embed(run, "s3://shop/items", "s3://shop/vectors")  # Parquet: item_id, vector, sids, model_key, content_hash
    embed_into_table(run, "s3://shop/new-items")              # into the table that a service of this run serves

A folder of vectors: items.parquet/part-*.parquet in the order of the items, quarantine/, and manifest.json, written
last, which names the parts. A killed call goes on where it was: with the table that it had read, at the first part that
it had not written. A later call embeds what is new or has another content, and drops what is no longer given. Bad rows,
and items on which the encoder fails or dies, are quarantined with their reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidray import storage
from sidray.cluster import on_cluster
from sidray.config import Settings, build, overridden
from sidray.embedding.attempt import Attempt, attempt
from sidray.embedding.kept import Kept
from sidray.embedding.new_items import encode_items
from sidray.embedding.parts import COLUMNS, Earlier, Parts
from sidray.embedding.pool import Cut
from sidray.embedding.settings import EmbeddingSettings
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.steps import Summary


class _Call(Settings):
    embedding: EmbeddingSettings


def with_pool(run: RunFolder, overrides: Sequence[str]) -> RunFolder:
    """The run with another actor pool: embedding.actors=8 ... UserError for what would change the vectors."""
    own = run.recipe.embedding
    chosen = build(_Call, overridden({"embedding": own.model_dump()}, overrides), "sidray embed").embedding
    if chosen.precision != own.precision:
        raise UserError(
            f"embedding.precision={chosen.precision} would give other vectors than the run's {own.precision}",
            "leave it out: vectors of one model_key are to be compared",
        )
    return replace(run, recipe=run.recipe.model_copy(update={"embedding": chosen}))


def batch_embed(run: RunFolder, items: str, out: str, max_bad_fraction: float = 0.05) -> Summary:
    """Writes <out>/items.parquet/, <out>/quarantine/ and <out>/manifest.json. Raises UserError for a table that breaks
    the contract, and for too many bad rows."""
    started = time.time()
    out = storage.absolute(out)
    with attempt(run, items, out, max_bad_fraction) as own:
        parts = Parts(storage.join(out, "items.parquet"), own.number)
        shards = _write_parts(run, own, parts)
        made = parts.made(shards)
        refused = [each for part in made for each in part.refused]
        own.check(refused)
        counts = {
            "items": sum(part.rows for part in made),
            "kept": sum(part.kept for part in made),
            "quarantined": own.set_aside(refused),
        }
        manifest = {"run": run.uri, "variant": run.label, "model_key": run.model_key, "source": items, **counts}
        names = [parts.uri(shard).rsplit("/", 1)[1] for shard in range(shards)]
        own.lease.confirm()
        storage.write_json(storage.join(out, "manifest.json"), {**manifest, "parts": names, "finished": time.time()})
        parts.delete_others()
    return {**counts, "out": parts.folder, "seconds": time.time() - started}


def _write_parts(run: RunFolder, own: Attempt, parts: Parts) -> int:
    """Writes the parts that are missing; returns how many there are in all."""
    total, size = own.catalogue.n_items, run.recipe.embedding.shard_rows
    shards = -(-total // size)
    missing = parts.missing(shards)
    if not len(missing):
        return shards
    earlier = parts.earlier(run.model_key)
    rows = [np.arange(shard * size, min((shard + 1) * size, total)) for shard in missing]
    tables = Cut(encode_items(run, own.catalogue, np.concatenate(rows), earlier.kept))
    refused: list[tuple[str, str]] = []
    for shard, wanted in zip(missing.tolist(), rows, strict=True):
        found = pa.concat_tables(tables.take(len(wanted)))
        kept = int(np.count_nonzero(found["place"].to_numpy() >= 0))
        parts.write(shard, _merged(found, earlier), kept, _refused(found))
        refused += _refused(found)
        own.check(refused)
    return shards


def _merged(found: pa.Table, earlier: Earlier) -> pa.Table:
    """The rows of a shard in order: those encoded now, and the earlier ones where `found` gives a place."""
    is_new, places = pc.is_valid(found["vector"]).to_numpy(), found["place"].to_numpy()
    new = found.filter(pa.array(is_new)).select(COLUMNS)
    if not np.any(places >= 0):
        return new
    order = np.argsort(np.concatenate([np.flatnonzero(is_new), np.flatnonzero(places >= 0)]))
    return pa.concat_tables([new, earlier.take(places[places >= 0])]).take(pa.array(order))


def _refused(found: pa.Table) -> list[tuple[str, str]]:
    rows = found.filter(pc.is_valid(found["refused"]))
    return list(zip(rows["item_id"].to_pylist(), rows["refused"].to_pylist(), strict=True))


def embed_into_table(run: RunFolder, items: str, max_bad_fraction: float = 0.05) -> Summary:
    """Appends new and changed items to the table of the run's collection, a commit for every shard, then folds it into
    a new generation. Services see each commit within seconds. Items of the table that are not given stay.

    Raises UserError as `batch_embed` does, and when another process folds the collection all the time."""
    started = time.time()
    collection = Collection.of(run)
    with attempt(run, items, storage.join(collection.uri, "embed"), max_bad_fraction) as own:
        written, refused = _append(run, own, collection)
        quarantined = own.set_aside(refused)
    generation = on_cluster(Collection.fold, collection)
    total = own.catalogue.n_items - len(refused)
    return {
        "items": total,
        "kept": total - written,
        "quarantined": quarantined,
        "out": f"{collection.table}, {generation.name}",
        "seconds": time.time() - started,
    }


def _append(run: RunFolder, own: Attempt, collection: Collection) -> tuple[int, list[tuple[str, str]]]:
    """The number of rows that were appended, and what was refused."""
    total, size = own.catalogue.n_items, run.recipe.embedding.shard_rows
    current = item_table.current(collection.table, columns=["item_id", "content_hash", "model_key"])
    known = Kept.of([current.filter(pc.equal(current["model_key"], run.model_key))])
    tables = Cut(encode_items(run, own.catalogue, np.arange(total), known, for_table=True))
    log = item_table.ItemLog(collection.table)
    written, refused = 0, list[tuple[str, str]]()
    for start in range(0, total, size):
        found = pa.concat_tables(tables.take(min(size, total - start)))
        new = found.filter(pc.is_valid(found["vector"])).drop_columns(["place", "refused"])
        own.lease.confirm()
        log.append(new.combine_chunks())
        written += new.num_rows
        refused += _refused(found)
        own.check(refused)
    return written, refused
