"""The parts that run on Ray: the ingest, the pictograms, H&M's files, and the stream of training batches."""

from __future__ import annotations

import io
import itertools
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray.data
import torch
from PIL import Image

from sidray.data import blocks, items, stream
from sidray.data.catalogue import Catalogue
from sidray.data.ingest import ingest
from sidray.data.settings import DataSettings
from sidray.data.stream import StepStream
from sidray.data.tables import open_table
from sidray.errors import UserError, root_user_error
from tests.data.conftest import blocks_in_this_process
from tests.data.makers import click_rows, item_rows, write

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.mark.parametrize("row_group_size", [7, 100], ids=["many units, one kind of task", "few units, two kinds"])
def test_ray_and_this_process_agree(tmp_path: Path, row_group_size: int) -> None:
    """Several files, some rows bad: the same rows, reasons and order."""
    rows = item_rows(90)
    rows[13]["image"], rows[50]["title"], rows[77]["item_id"] = b"bad", None, ""
    for part, start in enumerate(range(0, 90, 30)):
        write(rows[start : start + 30], tmp_path / "items" / f"{part}.parquet", row_group_size=row_group_size)
    settings = DataSettings(source="tables", items=str(tmp_path / "items"))
    table = open_table(settings.items, "items")
    wanted = [row for block in blocks_in_this_process(table, settings) for row in block.to_pylist()]
    found = [row for block in items._checked_blocks(table, settings) for row in block.to_pylist()]
    assert found == wanted
    assert len(found) == 90


def test_ingest_leaves_the_user_s_ray_data_settings_alone(tmp_path: Path) -> None:
    context = ray.data.DataContext.get_current()
    before = (context.target_max_block_size, context.execution_options.preserve_order)
    tables = {
        "items": write(item_rows(5), tmp_path / "i.parquet"),
        "clicks": write(click_rows(5), tmp_path / "c.parquet"),
    }
    ingest(DataSettings(source="tables", **tables), str(tmp_path / "out"))
    assert Catalogue.open(str(tmp_path / "out")).n_items == 5
    assert (context.target_max_block_size, context.execution_options.preserve_order) == before


def test_pictograms(tmp_path: Path) -> None:
    summary = ingest(DataSettings(limit=60, image_size=48), str(tmp_path / "out"))
    catalogue = Catalogue.open(str(tmp_path / "out"))
    assert summary["items"] == summary["images"] == 60
    assert summary["quarantined"] == {}
    assert {"train", "valid", "test"} <= set(summary["clicks"])
    assert len(catalogue.manifest["partitions"]) > 5
    sizes = [Image.open(io.BytesIO(data)).size for data in catalogue.items(None, ["image"])["image"].to_pylist()]
    assert {max(size) for size in sizes} == {48}
    assert not (tmp_path / "out" / "tables").exists()


KAGGLE_ARTICLES = """\
article_id,product_code,prod_name,product_type_name,graphical_appearance_name,colour_group_name,index_group_name,detail_desc
0108775015,0108775,Strap top,Vest top,Solid,Black,Ladieswear,"Jersey top, with
narrow straps."
0108775044,0108775,Strap  top,Vest top,Stripe,White,Ladieswear,"Jersey top."
0110065001,0110065,Braces Tweed,Other accessories,Other pattern,Yellowish Brown,Menswear,
0110065002,0110065,OP T-shirt,Bra,All over pattern,Unknown,Ladieswear,"Bra."
"""
KAGGLE_TRANSACTIONS = "t_dat,customer_id,article_id,price,sales_channel_id\n" + "".join(
    f"2018-09-{day:02d},{customer * 64},{article},0.05,2\n"
    for day, customer, article in [
        (20, "a", "0108775015"), (20, "a", "0110065001"), (20, "b", "0108775015"), (20, "b", "0110065001"),
        (21, "a", "0108775044"),
    ]
)  # fmt: skip


def test_the_kaggle_folder_of_hm(tmp_path: Path) -> None:
    folder = tmp_path / "kaggle"
    (folder / "images" / "010").mkdir(parents=True)
    (folder / "articles.csv").write_text(KAGGLE_ARTICLES)
    (folder / "transactions_train.csv").write_text(KAGGLE_TRANSACTIONS)
    Image.new("RGB", (400, 800), "black").save(folder / "images" / "010" / "0108775015.jpg")
    settings = DataSettings(source="hm", folder=str(folder), text_fields=["category", "description"])
    summary = ingest(settings, str(tmp_path / "out"), wanted=None)
    catalogue = Catalogue.open(str(tmp_path / "out"))
    table = catalogue.items(None, ["item_id", "title", "category", "description", "partition"])
    assert table.to_pylist()[0] == {
        "item_id": "0108775015", "title": "Strap top", "category": "Vest top",
        "description": "Jersey top, with\nnarrow straps.", "partition": "Ladieswear",
    }  # fmt: skip
    photo, *others = catalogue.items(None, ["image"])["image"].to_pylist()
    assert Image.open(io.BytesIO(photo)).size == (128, 256)
    assert others == [None, None, None]
    clicks = catalogue.clicks().to_pylist()
    assert [(click["kind"], click["query"], click["item_row"]) for click in clicks] == [
        ("name", "black strap top", 0), ("name_first", "strap top black", 0), ("type", "black vest top", 0),
        ("name", "white stripe strap top", 1), ("name_first", "strap top white", 1),
        ("type", "white stripe vest top", 1),
        ("name", "yellowish brown braces tweed", 2), ("name_first", "braces tweed yellowish brown", 2),
        ("type", "yellowish brown other accessories", 2),
    ]  # fmt: skip
    assert len({click["split"] for click in clicks[:6]}) == 1  # siblings stay together
    pairs = [(pair["item_row"], pair["related_row"], pair["score"]) for pair in catalogue.pairs().to_pylist()]
    assert pairs == [(0, 2, 2.0), (2, 0, 2.0)]  # two baskets; the purchase of the next day is another basket
    assert summary["events"] == 5


class Squares:
    """A fetch whose output has another shape at every step."""

    def __call__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        wide = torch.full((len(rows), int(rows[0]) % 3 + 1), float(rows[0]))
        return {"rows": torch.from_numpy(rows.copy()), "wide": wide, "flag": torch.tensor(rows[0] % 2 == 0)}


def test_steps_come_in_order_and_fast() -> None:
    positions = np.random.default_rng(0).permutation(1_200).reshape(300, 4)
    stream = StepStream(positions, Squares(), concurrency=1)
    start = 0.0
    for step, batch in enumerate(stream):
        start = start or time.perf_counter()
        assert batch["rows"].tolist() == positions[step].tolist()
        assert batch["wide"].shape == (4, positions[step, 0] % 3 + 1)
        assert batch["flag"].item() == (positions[step, 0] % 2 == 0)
    elapsed = time.perf_counter() - start
    assert stream.batches == 300
    assert 299 / elapsed > 100
    assert 0 < stream.waited_s <= elapsed


def test_long_plans_go_through_several_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIPELINE_STEPS", 7)
    steps = StepStream(np.arange(40).reshape(20, 2), Squares(), concurrency=1)
    assert [batch["rows"].tolist() for batch in steps] == np.arange(40).reshape(20, 2).tolist()


def test_waiting_is_measured_without_the_start_up() -> None:
    def slow(rows: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return {"rows": torch.from_numpy(rows.copy())}

    stream = StepStream(np.zeros((3, 1)), slow, concurrency=1)
    batches = iter(stream)
    next(batches)
    assert stream.waited_s == 0
    assert len(list(batches)) == 2
    assert stream.waited_s > 0


def test_streams_can_be_left_interleaved_and_empty() -> None:
    positions = np.arange(120).reshape(60, 2)
    first, second = (
        iter(StepStream(positions, Squares(), concurrency=1)),
        iter(StepStream(positions[::-1], Squares(), concurrency=1)),
    )
    for step in range(10):
        assert next(first)["rows"].tolist() == positions[step].tolist()
        assert next(second)["rows"].tolist() == positions[59 - step].tolist()
    first.close()  # type: ignore[attr-defined]
    assert [batch["rows"][0].item() for batch in itertools.islice(second, 3)] == [98, 96, 94]
    assert list(StepStream(np.zeros((0, 4)), Squares())) == []


def test_an_error_in_fetch_reaches_the_consumer() -> None:
    def broken(rows: np.ndarray) -> dict[str, torch.Tensor]:
        raise UserError("row 7 is broken", "mend it")

    with pytest.raises(Exception, match="row 7 is broken") as caught:
        list(StepStream(np.zeros((2, 1)), broken, concurrency=1))
    found = root_user_error(caught.value)
    assert found is not None
    assert found.problem == "row 7 is broken"


def test_a_full_buffer_does_not_spin() -> None:
    """While the consumer trains, Ray Data's scheduling thread in its process takes little of its CPU time."""
    stream = StepStream(np.zeros((64, 2**18), np.int64), Squares(), concurrency=1, buffer_bytes=2**23)
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    time.sleep(1)  # the buffer fills
    before = time.process_time()
    time.sleep(1)  # as long as a training step
    assert time.process_time() - before < 0.25  # 0.9 without the pace


def test_the_pace_slows_only_while_results_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    breaths: list[float] = []
    monkeypatch.setattr(blocks.time, "sleep", breaths.append)
    pace = blocks.Pace()
    for idling in [True, True, *[False] * 40, True, False]:
        pace.on_execution_step(SimpleNamespace(_consumer_idling=lambda idling=idling: idling))
    assert breaths[:2] == [0.01, 0.01]
    assert np.all(np.diff(breaths[2:20]) > 0)
    assert breaths[41] == 0.1
    assert breaths[42:] == pytest.approx([0.01, 0.011])


def test_a_stream_that_nobody_reads_leaves_its_cpus_to_others() -> None:
    """Two ranks share one place for data tasks, and the first one stands still until the other has its batch: tasks
    that waited for their reader with the CPU in hand would block both for ever."""

    def fetch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(len(rows), 2**18)}  # 1 MiB a row

    positions = np.arange(200).reshape(200, 1)
    place = {"num_cpus": ray.cluster_resources()["CPU"], "concurrency": 1, "buffer_bytes": 4 * 2**20}
    standing = iter(StepStream(positions, fetch, **place))
    for _ in range(9):
        next(standing)
    time.sleep(2)  # its buffer is full
    other = iter(StepStream(positions, fetch, **place))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, other)
        done, _ = wait([first], timeout=30)
        left = sum(1 for _ in standing)
        first.result()
    assert done, "the second stream got no CPU while the first stood still"
    assert left == 191
    assert sum(1 for _ in other) == 199
