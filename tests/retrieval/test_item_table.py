"""The item table against a plain dictionary that replays the same appends."""

from __future__ import annotations

import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.retrieval.item_table import ItemLog, append, compact, create, current, open_version, tombstones

D = 3


def rows(ids: list[str], value: float = 0.0, **more: object) -> pa.RecordBatch:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.full(len(ids) * D, value, np.float32)), D)
    columns = {"item_id": ids, "vector": vectors, "model_key": ["m"] * len(ids), "title": [f"{value}"] * len(ids)}
    return pa.RecordBatch.from_pydict(columns | more)


def table(ids: list[str], value: float = 0.0) -> pa.Table:
    return pa.Table.from_batches([rows(ids, value)])


def state(found: pa.Table) -> dict[str, str]:
    return dict(zip(found["item_id"].to_pylist(), found["title"].to_pylist(), strict=True))


operations = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from("abcdef"), max_size=4), st.sampled_from(["first", "second"])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(operations=operations, compact_at=st.integers(0, 5))
def test_any_history_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[bool, list[str], str]], compact_at: int
) -> None:
    uri = str(tmp_path_factory.mktemp("log") / "items")
    create(uri, [rows(["a", "b", "c"], -1.0)], D)
    writers = {"first": ItemLog(uri), "second": ItemLog(uri)}
    expected = {"a": "-1.0", "b": "-1.0", "c": "-1.0"}
    history = {1: dict(expected)}
    for step, (delete, ids, writer) in enumerate(operations):
        version = writers[writer].append(tombstones(ids) if delete else table(ids, float(step)))
        for item_id in ids:
            expected.pop(item_id, None)
            if not delete:
                expected[item_id] = f"{float(step)}"
        history[version] = dict(expected)
        if step == compact_at:
            history[compact(uri, version)] = dict(expected)
    for version, items in history.items():
        assert state(current(uri, version)) == items


def test_a_stream_is_written_without_being_held(tmp_path: Path) -> None:
    alive = []

    def stream():
        for start in range(0, 5000, 100):
            alive.append(start)
            yield rows([str(n) for n in range(start, start + 100)], float(start), category=["c"] * 100)

    dataset = create(str(tmp_path / "t"), stream(), D, ["category"])
    assert len(alive) == 50
    found = dataset.to_table(columns=["item_id", "seq", "category", "partition", "deleted"])
    assert found["item_id"].to_pylist() == [str(n) for n in range(5000)]
    assert (np.diff(found["seq"].to_numpy()) == 1).all()
    assert set(found["category"].to_pylist()) == {"c"}
    assert set(found["partition"].to_pylist()) == {""}
    assert not any(found["deleted"].to_pylist())


def test_seq_rises_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "t")
    create(uri, [rows(["a"], 1.0)], D)
    before = time.time_ns()
    monkeypatch.setattr("sidray.retrieval.item_table.time.time_ns", lambda: before - 10**15)
    log, other = ItemLog(uri), ItemLog(uri)
    log.append(table(["a"], 2.0))
    other.append(table(["a"], 3.0))
    log.append(table(["a", "a"], 4.0))
    log.append(tombstones(["a"]))
    log.append(table(["a"], 5.0))
    seqs = open_version(uri).to_table(columns=["seq"])["seq"].to_numpy()
    assert (np.diff(seqs) > 0).all()
    assert state(current(uri)) == {"a": "5.0"}


def test_a_row_that_comes_late_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow writer takes its seq first and commits last: the other's row stays current."""
    uri = str(tmp_path / "t")
    create(uri, [rows(["a", "b"], 1.0)], D)
    slow, fast = ItemLog(uri), ItemLog(uri)
    slow.append(table(["b"], 1.0))
    taken = time.time_ns()
    fast.append(table(["a"], 2.0))
    monkeypatch.setattr(slow, "_catch_up", lambda: None)
    monkeypatch.setattr("sidray.retrieval.item_table.time.time_ns", lambda: taken)
    slow.append(table(["a", "b"], 3.0))
    assert state(current(uri)) == {"a": "2.0", "b": "3.0"}


def test_seq_is_the_time_when_the_clock_is_right(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    create(uri, [], D)
    before = time.time_ns()
    append(uri, table(["a", "b"]))
    found = open_version(uri).to_table()
    assert before <= found["seq"][0].as_py() <= time.time_ns()
    assert abs(found["updated_at"][0].as_py().timestamp() - time.time()) < 60


def test_only_the_asked_columns_are_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    create(uri, [rows(["a", "b"], thumbnail=[b"x", None])], D)
    assert current(uri, columns=["title", "item_id"]).column_names == ["title", "item_id"]
    with pytest.raises(UserError, match=r"no column 'titel'.*did you mean 'title'"):
        current(uri, columns=["titel"])


def test_nothing_changed_and_nothing_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    create(uri, [], D)
    assert ItemLog(uri).append(table([])) == 1
    assert current(uri).num_rows == 0
    assert current(uri).schema.equals(lance.dataset(uri).schema)


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (rows(["a"]).drop_columns(["vector"]), "item 'a' has no vector"),
        (rows(["a"]).drop_columns(["model_key"]), "item 'a' has no model_key"),
        (rows(["a"], vektor=[1]), r"no column 'vektor'.*did you mean 'vector'"),
        (rows(["a"], seq=[1]), "no column 'seq'"),
        (rows([None]), "no item_id"),
        (rows(["a"], sids=["x"]), "'sids' does not fit"),
        (rows(["ok", "bad"], float("nan")), "vector of item 'ok' has NaN"),
        (
            rows(["a"]).set_column(
                1, "vector", pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2)
            ),
            "'vector' does not fit",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(tmp_path: Path, batch: pa.RecordBatch, problem: str) -> None:
    uri = str(tmp_path / "t")
    create(uri, [rows(["first"])], D)
    with pytest.raises(UserError, match=problem):
        append(uri, pa.Table.from_batches([batch]))
    assert open_version(uri).version == 1
    with pytest.raises(UserError, match=problem):
        create(str(tmp_path / "new"), [rows(["first"]), batch], D)
    with pytest.raises(UserError, match="there is no item table"):
        current(str(tmp_path / "new"))


def test_an_error_of_the_stream_keeps_its_type(tmp_path: Path) -> None:
    def stream():
        yield rows(["a"])
        raise ZeroDivisionError("in the source")

    with pytest.raises(ZeroDivisionError, match="in the source"):
        create(str(tmp_path / "t"), stream(), D)


def test_mistakes_name_the_place(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    create(uri, [rows(["a"])], D)
    with pytest.raises(UserError, match="exists"):
        create(uri, [], D)
    with pytest.raises(UserError, match="has no version 9"):
        current(uri, version=9)
    with pytest.raises(UserError, match="no item table at"):
        ItemLog(str(tmp_path / "other"))
    with pytest.raises(UserError, match="'title' is a column"):
        create(str(tmp_path / "u"), [], D, ["title"])


def test_a_compaction_of_what_another_has_joined_since_does_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "items")
    create(uri, [rows(["a"], 0.0)], D)
    log = ItemLog(uri)
    for step in (1.0, 2.0):
        version = log.append(table(["a", "b"], step))
    for _ in range(2):
        compact(uri, version)
    assert state(current(uri)) == {"a": "2.0", "b": "2.0"}
    log.append(table(["c"], 3.0))
    compact(uri, version)
    assert state(current(uri)) == {"a": "2.0", "b": "2.0", "c": "3.0"}
