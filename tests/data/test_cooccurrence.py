"""Co-occurrence against equation (2) written down as a double loop."""

from __future__ import annotations

import datetime
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sidray.data import cooccurrence as module
from sidray.data.catalogue import Catalogue
from sidray.data.cooccurrence import co_occurrence
from sidray.data.ingest import ingest
from sidray.data.settings import CooccurrenceSettings
from tests.data.makers import settings, write

Event = tuple[str, int, str, int]  # user, item, action, day
ACTIONS = ("exposure", "click", "conversion", "share")


def double_loop(events: list[Event], given: CooccurrenceSettings) -> list[tuple[int, int, float]]:
    by_user: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event[3]):  # stable: of equal days the log's order
        by_user[event[0]].append(event)
    scores: dict[tuple[int, int], float] = defaultdict(float)
    for own in by_user.values():
        clicked = {item for _, item, action, _ in own if action in given.click_actions}
        related = {
            (own[i][1], own[j][1])
            for i in range(len(own))
            for j in range(i + 1, len(own))
            if own[i][2] in given.view_actions and own[j][2] in given.click_actions and own[i][1] != own[j][1]
        }
        for pair in related:
            scores[pair] += 1 / len(clicked)
    best: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for (item, other), score in scores.items():
        if given.low <= score <= given.up:
            best[item].append((-score, other))
    return [(item, other, -score) for item in sorted(best) for score, other in sorted(best[item])[: given.top]]


def table(events: list[Event]) -> pa.Table:
    users, items, actions, days = (list(column) for column in zip(*events, strict=True)) if events else ([],) * 4
    stamps = pa.array([datetime.datetime(2024, 1, day) for day in days], pa.timestamp("us"))
    columns = {"user_id": pa.array(users, pa.string()), "item_row": pa.array(items, pa.int64())}
    return pa.table({**columns, "action": pa.array(actions, pa.string()), "ts": stamps})


def agrees(found: pa.Table, wanted: list[tuple[int, int, float]]) -> None:
    rows = [tuple(row[name] for name in ("item_row", "related_row")) for row in found.to_pylist()]
    assert rows == [pair[:2] for pair in wanted]
    np.testing.assert_allclose(found["score"].to_numpy(), [score for *_, score in wanted], rtol=1e-12)


event = st.tuples(st.sampled_from("uvwx"), st.integers(0, 5), st.sampled_from(ACTIONS), st.integers(1, 3))


@given(
    events=st.lists(event, min_size=1, max_size=25),
    low=st.sampled_from([0.0, 0.3, 0.5]),
    up=st.sampled_from([0.5, 1.0, 30.0]),
    top=st.integers(1, 4),
)
def test_any_log_equals_a_double_loop(events: list[Event], low: float, up: float, top: int) -> None:
    """The two functions that run inside Ray Data, in one bucket."""
    given = CooccurrenceSettings(low=low, up=up, top=top)
    known = [each for each in events if each[2] != "share"]
    if not known:
        return
    rows = table(known).append_column("_rowid", pa.array(np.arange(len(known))))
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(len(known))))
    agrees(module._best(module._sums_of_users(shuffled, given, 1), given), double_loop(events, given))


@pytest.mark.usefixtures("ray_session")
def test_many_buckets_give_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKET_EVENTS", 250)
    draw = random.Random(0)
    events = [
        (f"u{draw.randrange(60)}", draw.randrange(30), draw.choice(ACTIONS), draw.randrange(1, 29)) for _ in range(800)
    ]
    lance.write_dataset(table(events), tmp_path / "events.lance", max_rows_per_file=300)
    given = CooccurrenceSettings(low=0.05, up=0.6, top=5, view_actions=("exposure",), click_actions=("share", "click"))
    found = co_occurrence(str(tmp_path / "events.lance"), given)
    agrees(found, double_loop(events, given))
    assert found.num_rows > 50
    nobody = CooccurrenceSettings(view_actions=("it's",), click_actions=("none",))
    assert co_occurrence(str(tmp_path / "events.lance"), nobody).num_rows == 0


@pytest.mark.usefixtures("ray_session")
def test_real_purchases(tmp_path: Path, shared_data: Path) -> None:
    source = pq.read_table(shared_data / "hm" / "events.parquet")
    items = {item: row for row, item in enumerate(sorted(set(source["item_id"].to_pylist())))}
    rows = pa.array([items[item] for item in source["item_id"].to_pylist()])
    events = source.select(["user_id", "action", "ts"]).append_column("item_row", rows)
    lance.write_dataset(events, tmp_path / "events.lance")
    stamps = events["ts"].cast(pa.int64()).to_pylist()
    known = list(
        zip(events["user_id"].to_pylist(), rows.to_pylist(), events["action"].to_pylist(), stamps, strict=True)
    )
    given = CooccurrenceSettings()
    agrees(co_occurrence(str(tmp_path / "events.lance"), given), double_loop(known, given))


def test_a_crawler_is_cut_to_its_latest_items() -> None:
    many = module.MAX_ITEMS + 50
    items, all_of_them = np.arange(many), np.ones(many, bool)
    left, right, weights = module._pairs_of_user(items, all_of_them, all_of_them)
    assert set(left.tolist()) | set(right.tolist()) == set(range(50, many))
    assert set(weights.tolist()) == {1 / many}  # N_u counts all that were clicked


@pytest.mark.usefixtures("ray_session")
def test_events_become_pairs_where_none_are_given(tmp_path: Path) -> None:
    def row(user: str, item: int, action: str, day: int) -> dict[str, Any]:
        return {"user_id": user, "item_id": f"i{item}", "action": action, "ts": datetime.datetime(2024, 1, day)}

    events = [row("u", 1, "click", 2), row("u", 2, "conversion", 1), row("u", 3, "exposure", 1)]
    events += [row("v", 2, "click", 1), row("v", 1, "click", 1), row("w", 4, "click", 1)]
    data = settings(tmp_path).model_copy(update={"events": write(events, tmp_path / "events.parquet")})
    summary = ingest(data, str(tmp_path / "out"))
    catalogue = Catalogue.open(str(tmp_path / "out"))
    assert summary["events"] == 6
    assert catalogue._table("events")["item_row"].to_pylist() == [1, 2, 3, 2, 1, 4]
    found = [(pair["item_row"], pair["related_row"], pair["score"]) for pair in catalogue.pairs().to_pylist()]
    assert found == [(2, 1, 1.0), (3, 1, 0.5)]  # u and v clicked two items each


@pytest.mark.parametrize("bad", [{"low": 2.0, "up": 1.0}, {"view_actions": ()}, {"click_actions": ()}, {"top": 0}])
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CooccurrenceSettings(**bad)
