"""Which shard a partition is in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidray.retrieval.shards import all_shards, shard_of


@given(name=st.text(max_size=20), count=st.integers(1, 9))
def test_every_partition_is_in_one_shard(name: str, count: int) -> None:
    assert [shard.number for shard in all_shards(count) if shard.has(name)] == [shard_of(name, count)]


def test_it_is_for_ever() -> None:
    """The names of stored index folders depend on it."""
    assert [shard_of(name, 4) for name in ("", "food", "toys", "北京", "wx4g0")] == [0, 3, 2, 0, 2]


def test_many_partitions_spread_out() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[shard_of(f"p{number}", 4)] += 1
    assert min(counts) > 900
