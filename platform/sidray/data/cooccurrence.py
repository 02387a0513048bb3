"""Related items from behaviour: the co-occurrence of NoteLLM-2 (equation 2), by Ray Data, whatever the log's size.

    pairs = co_occurrence("out/events.lance", CooccurrenceSettings())   # item_row, related_row, score

s(A -> B) = sum over the users u who viewed A and then clicked B of 1 / N_u, where N_u is the number of distinct items
that u clicked; a user counts once for a pair, and an item is not related to itself. Of A's companions those with
low <= s <= up remain, and of them the `top` highest. Two shuffles: events by user, then partial sums by item; a task
holds one bucket of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc

from sidray.data.settings import CooccurrenceSettings

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
BUCKET_EVENTS = 100_000  # of whole users, about
MAX_ITEMS = 200  # of a user, the latest viewed and the latest clicked: a crawler's pairs would be millions
_COLUMNS = ["item_row", "related_row", "score"]
_ORDER = [("item_row", "ascending"), ("score", "descending"), ("related_row", "ascending")]


def co_occurrence(events_uri: str, settings: CooccurrenceSettings) -> pa.Table:
    """item_row, related_row int64 and score float64, by item, the highest score first, of equal ones the smaller row.

    `events_uri`: a Lance table of user_id, item_row, action, ts; of equal times the table's order counts."""
    import ray.data

    from sidray.data.blocks import calm
    from sidray.datasets import open_dataset

    actions = sorted({*settings.view_actions, *settings.click_actions})
    wanted = "action IN (" + ", ".join("'" + name.replace("'", "''") + "'" for name in actions) + ")"
    buckets = -(-int(open_dataset(events_uri).count_rows(wanted)) // BUCKET_EVENTS)
    if not buckets:
        return _table(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns, scan = ["user_id", "item_row", "action", "ts"], {"with_row_id": True}
    events = ray.data.read_lance(events_uri, columns=columns, filter=wanted, scanner_options=scan)
    calm(events)
    users = events.map_batches(partial(_with_bucket, buckets=buckets), batch_format="pyarrow")
    sum_up = partial(_sums_of_users, settings=settings, buckets=buckets)
    sums = users.groupby("bucket", buckets).map_groups(sum_up, batch_format="pyarrow")
    best = sums.groupby("bucket", buckets).map_groups(partial(_best, settings=settings), batch_format="pyarrow")
    parts = [pa.table(part).select(_COLUMNS) for part in best.iter_batches(batch_format="pyarrow", batch_size=None)]
    return pa.concat_tables(parts).sort_by(_ORDER)


def _with_bucket(events: pa.Table, buckets: int) -> pa.Table:
    """All events of a user have one bucket, on every machine."""
    hashes = pd.util.hash_array(events["user_id"].to_numpy())
    return events.append_column("bucket", pa.array((hashes % np.uint64(buckets)).astype(np.int64)))


def _sums_of_users(events: pa.Table, settings: CooccurrenceSettings, buckets: int) -> pa.Table:
    """The sums over the users of a bucket, and the bucket of each item."""
    events = events.sort_by([("user_id", "ascending"), ("ts", "ascending"), ("_rowid", "ascending")])
    items = events["item_row"].to_numpy()
    viewed, clicked = (
        pc.is_in(events["action"], pa.array(names)).to_numpy()
        for names in (settings.view_actions, settings.click_actions)
    )
    spans = _runs(pc.dictionary_encode(events["user_id"]).combine_chunks().indices.to_numpy())
    parts = [_pairs_of_user(items[span], viewed[span], clicked[span]) for span in spans]
    summed = _summed(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return summed.append_column("bucket", pa.array(summed["item_row"].to_numpy() % buckets))


def _pairs_of_user(items: Ints, viewed: Mask, clicked: Mask) -> tuple[Ints, Ints, Floats]:
    """Each (A, B) with a view of A before a click on B, and 1 / N_u; the user's events in order of time, [events]."""
    times = np.arange(len(items))
    seen, first = np.unique(items[viewed], return_index=True)
    first = times[viewed][first]  # when each item was viewed first
    chosen, last = np.unique(items[clicked][::-1], return_index=True)
    last = times[clicked][::-1][last]  # and clicked last
    seen, first, chosen, last, count = *_latest(seen, first), *_latest(chosen, last), len(chosen)
    left, right = np.nonzero((first[:, None] < last[None, :]) & (seen[:, None] != chosen[None, :]))
    return seen[left], chosen[right], np.full(len(left), 1 / max(1, count))


def _latest(items: Ints, times: Ints) -> tuple[Ints, Ints]:
    kept = np.argsort(times)[-MAX_ITEMS:]
    return items[kept], times[kept]


def _best(sums: pa.Table, settings: CooccurrenceSettings) -> pa.Table:
    """The companions of the items of a bucket."""
    summed = _summed(*(sums[name].to_numpy() for name in _COLUMNS))
    score = summed["score"]
    inside = pc.and_(pc.greater_equal(score, settings.low), pc.less_equal(score, settings.up))
    summed = summed.filter(inside).sort_by(_ORDER)
    item = summed["item_row"].to_numpy()
    rank = np.arange(len(item)) - np.searchsorted(item, item)  # among the item's own companions
    return summed.filter(pa.array(rank < settings.top))


def _summed(item: Ints, related: Ints, score: Floats) -> pa.Table:
    """One row for each pair."""
    order = np.lexsort((score, related, item))  # by score, so that a sum does not depend on the order of blocks
    item, related, score = item[order], related[order], score[order]
    first = np.flatnonzero(np.append(True, (np.diff(item) != 0) | (np.diff(related) != 0))[: len(item)])
    return _table(item[first], related[first], np.add.reduceat(score, first) if len(first) else score)


def _table(item: Ints, related: Ints, score: Floats) -> pa.Table:
    return pa.table(dict(zip(_COLUMNS, (item, related, score), strict=True)))


def _runs(codes: npt.NDArray[np.int32]) -> Iterator[slice]:
    """Where each run of equal values lies."""
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for low, high in pairwise(bounds):
        yield slice(low, high)
