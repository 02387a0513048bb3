"""The recall of a run: one deployment, or several that hold a shard of its table each.

A search goes to the shards that its partitions are in, without any to all of them; the answers are merged by score. An
answer of several names the oldest state among them, so that what it promises of the table version holds for all.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from sidray.retrieval.shards import shard_of
from sidray.serving.messages import Found, RecallQuery, Refusal, SimilarFound, SimilarQuery, Vector
from sidray.serving.schemas import Index, IndexKey
from sidray.serving.service import Recalling

T = TypeVar("T")
Q = TypeVar("Q", RecallQuery, SimilarQuery)
F = TypeVar("F", Found, SimilarFound)


class Shard(Recalling, Protocol):
    """What recall.py answers."""

    async def vectors(self, item_ids: list[str], min_table_version: int) -> dict[str, Vector] | Refusal: ...


class Shards:
    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    async def search(self, query: RecallQuery) -> Found | Refusal:
        return _merged(await asyncio.gather(*(shard.search(part) for shard, part in self._parts(query))), query.k)

    async def similar(self, query: SimilarQuery) -> SimilarFound | Refusal:
        """The items of a history may be in other shards than what is looked for: these are given their vectors."""
        if len(self._shards) > 1:
            each = (shard.vectors(query.item_ids, query.min_table_version) for shard in self._shards)
            for vectors in await asyncio.gather(*each):
                if isinstance(vectors, Refusal):
                    return vectors
                query = replace(query, vectors=query.vectors | vectors)
        return _merged(await asyncio.gather(*(shard.similar(part) for shard, part in self._parts(query))), query.k)

    async def item(self, item_id: str) -> tuple[dict[str, Any], int] | Refusal:
        return _first(await asyncio.gather(*(shard.item(item_id) for shard in self._shards)))

    async def thumbnail(self, item_id: str) -> bytes | Refusal:
        return _first(await asyncio.gather(*(shard.thumbnail(item_id) for shard in self._shards)))

    async def describe(self) -> Index:
        parts = await asyncio.gather(*(shard.describe() for shard in self._shards))
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("items", "partitions")}
        lag = max(part.lag_seconds for part in parts)
        return parts[0].model_copy(update={**_oldest(parts).model_dump(), **sums, "lag_seconds": lag})

    def _parts(self, query: Q) -> list[tuple[Shard, Q]]:
        """Each shard concerned, and what it is asked."""
        if query.partitions is None:
            return [(shard, query) for shard in self._shards]
        names: dict[int, list[str]] = {}
        for name in query.partitions:
            names.setdefault(shard_of(name, len(self._shards)), []).append(name)
        return [(self._shards[number], replace(query, partitions=own)) for number, own in names.items()]


def _merged(answers: Sequence[F | Refusal], k: int) -> F | Refusal:
    """The best k hits of all, or a refusal."""
    if refusals := [answer for answer in answers if isinstance(answer, Refusal)]:
        return _telling(refusals)
    found = [answer for answer in answers if not isinstance(answer, Refusal)]
    if len(found) == 1:
        return found[0]
    hits = sorted(itertools.chain.from_iterable(each.hits for each in found), key=lambda hit: -hit["score"])
    return replace(found[0], hits=hits[:k], index=_oldest([each.index for each in found]))


def _first(answers: Sequence[T | Refusal]) -> T | Refusal:
    """What one of the shards has, or else a refusal."""
    for answer in answers:
        if not isinstance(answer, Refusal):
            return answer
    return _telling([answer for answer in answers if isinstance(answer, Refusal)])


def _telling(refusals: Sequence[Refusal]) -> Refusal:
    """Not that of a shard that merely does not have the item."""
    return next((each for each in refusals if not each.code.startswith("unknown_item")), refusals[0])


def _oldest(keys: Sequence[IndexKey]) -> IndexKey:
    oldest = min(keys, key=lambda key: key.table_version)
    return IndexKey(**{name: getattr(oldest, name) for name in IndexKey.model_fields})
