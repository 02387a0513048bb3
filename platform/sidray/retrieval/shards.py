"""A table too large for one replica is cut into shards: whole partitions, by a hash of their names.

Shard(0, of=4).has("toys")   # the same everywhere and for ever, for partitions that do not exist yet as well
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    number: int = 0
    of: int = 1

    def has(self, partition: str) -> bool:
        return shard_of(partition, self.of) == self.number


WHOLE = Shard()


def shard_of(partition: str, shards: int) -> int:
    """The number of the shard that a partition is in."""
    return int.from_bytes(hashlib.blake2b(partition.encode(), digest_size=8).digest(), "little") % shards


def all_shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(count)]
