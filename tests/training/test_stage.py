"""Stages on Ray Train: ZeRO-3, the plan of rows. They repeat stages of the debug run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import read_vectors
from sidray.finished import RunFolder
from sidray.graph import build_graph
from sidray.graph_base import Graph
from sidray.recipe import Recipe
from sidray.steps import Store, Work
from sidray.training.engine import linear_schedule
from sidray.training.record import Record
from sidray.training.schedule import Schedule
from sidray.training.settings import StageSettings, TrainingSettings
from tests.cluster.exported import exported_now, told
from tests.finished import losses

pytestmark = pytest.mark.ray
FILES = ["metrics.jsonl", "stage.json", "stage.png", "towers.safetensors"]


def graph_of(debug_run: str, **training: Any) -> tuple[Graph, Store]:
    run = RunFolder.open(debug_run)
    recipe: Recipe = run.recipe
    if training:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})
    return build_graph(recipe), Store(run.root)


def again(graph: Graph, store: Store, role: str, folder: Path) -> list[dict[str, float]]:
    """The stage computed once more into `folder`, from the same inputs; its history."""
    step = graph[role]
    step.run(Work(str(folder), {name: store.output(needed) for name, needed in step.inputs.items()}))
    return Record.read(str(folder)).steps


@pytest.mark.slow  # test_run_notes.py has offloaded ZeRO-3 against ZeRO-0, of an MLRM
def test_zero_3_trains_as_zero_0(debug_run: str, tmp_path: Path) -> None:
    graph, store = graph_of(debug_run)
    plain = store.output(graph["stage-query2item"])
    sharded, _ = graph_of(debug_run, zero_stage=3, offload="optimizer")
    history = again(sharded, store, "stage-query2item", tmp_path)
    np.testing.assert_allclose(losses(history), losses(Record.read(plain).steps), rtol=1e-4)
    from safetensors.numpy import load_file

    one, two = load_file(f"{plain}/towers.safetensors"), load_file(tmp_path / "towers.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-4, err_msg=name)


def test_how_training_survives_does_not_change_a_stage(debug_run: str) -> None:
    graph, _ = graph_of(debug_run)
    other, _ = graph_of(debug_run, min_workers=1, resize_s=5.0, keep_checkpoints=5, checkpoint_every=3)
    assert graph["stage-finetune"].key == other["stage-finetune"].key


def test_stages_write_what_they_promise(debug_run: str) -> None:
    graph, store = graph_of(debug_run)
    for role in ("stage-query2text", "stage-finetune"):
        folder = Path(store.output(graph[role]))
        assert sorted(path.name for path in folder.iterdir()) == FILES
    record = Record.read(store.output(graph["stage-finetune"]))
    assert {"causal/loss", "causal_sids/loss", "query2item/loss", "query2item_hard/loss", "lr"} <= set(record.steps[0])
    assert {"query2item/R@10", "causal_sids/token accuracy", "score"} <= set(record.validation[-1])


def test_a_stage_tells_rays_metrics_what_it_trained_on(debug_run: str) -> None:
    """Its workers have ended: Ray keeps what they counted."""
    graph, store = graph_of(debug_run)
    record = Record.read(store.output(graph["stage-query2text"]))
    samples, waited = record.step * record.batch_size, sum(row["waited"] for row in record.steps)
    page = exported_now()
    assert told(page, "training_samples_total", stage="query2text") >= samples > 0  # others may repeat it
    assert told(page, "training_data_wait_seconds_total", stage="query2text") >= waited > 0


@pytest.mark.parametrize("rows", ["clicks", "items"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_schedule_covers_every_train_row_once_per_epoch(debug_run: str, rows: Any, workers: int) -> None:
    graph, store = graph_of(debug_run)
    catalogue = Catalogue.open(store.output(graph["catalogue"]))
    stage = StageSettings(name="s", tasks={"query2text": 1}, rows=rows, batch_size=8, epochs=1, seed=3)
    schedule = Schedule(stage, catalogue, workers)
    parts = [schedule.positions(0, rank) for rank in range(workers)]
    whole = np.concatenate(parts, axis=1).reshape(-1)  # click rows in the order of the global batches
    clicks = catalogue.clicks("train")
    if rows == "clicks":
        assert set(whole[: schedule.n_rows]) == set(clicks["click_row"].to_pylist())
    else:
        items = catalogue.clicks()["item_row"].to_numpy()[whole[: schedule.n_rows]]
        assert sorted(items) == catalogue.train_items.tolist()
        assert set(whole) <= set(clicks["click_row"].to_pylist())
    rest = np.concatenate([schedule.positions(5, rank) for rank in range(workers)], axis=1)
    np.testing.assert_array_equal(rest, np.concatenate(parts, axis=1)[5:])
    assert schedule.validation_steps()[-1] == schedule.steps


def test_too_many_workers_are_refused_before_they_wait_for_ever(ray_session: None) -> None:
    from sidray import cluster
    from sidray.errors import UserError

    with pytest.raises(UserError, match=r"training.workers=40 with 1 CPU .* need 40.5 CPU .* the cluster has 4 CPU"):
        cluster.preflight(TrainingSettings(workers=40, wait_s=0.5))


def test_workers_wait_for_nodes_that_join_and_ask_an_autoscaler_for_them(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.autoscaler import sdk

    from sidray import cluster

    asked: list[list[dict[str, float]]] = []

    def request(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)

    monkeypatch.setattr(sdk, "request_resources", request)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 9.0, "GPU": 2.0} if asked else {"CPU": 1.0})
    cluster.preflight(TrainingSettings(workers=2, cpus_per_worker=4, gpus_per_worker=1))
    assert asked == [[{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 0.5}], []]


def test_the_schedule_of_the_learning_rate() -> None:
    factor = linear_schedule(steps=10, warmup=0.2)
    assert [round(factor(step), 3) for step in (0, 1, 2, 6, 9, 10)] == [0.5, 1.0, 1.0, 0.5, 0.125, 0.0]


def test_items_are_embedded_as_if_none_had_a_picture(debug_run: str, tmp_path: Path) -> None:
    """The control without_images, on the same towers."""
    run = RunFolder.open(debug_run)
    controls = run.recipe.controls.model_copy(update={"without_images": True})
    graph, store = build_graph(run.recipe.model_copy(update={"controls": controls})), Store(run.root)
    plain = build_graph(run.recipe)
    assert graph["pretrained-towers"].key == plain["pretrained-towers"].key
    step = graph["pretrained"]
    step.run(Work(str(tmp_path), {name: store.output(needed) for name, needed in step.inputs.items()}))
    seen, unseen = (
        {name: read_vectors(f"{folder}/items.lance", name) for name in ("vector", "text", "image", "picture")}
        for folder in (store.output(plain["pretrained"]), str(tmp_path))
    )
    assert not unseen["image"].any()
    assert not unseen["picture"].any()
    assert seen["picture"].any()
    np.testing.assert_allclose(unseen["text"], seen["text"], atol=1e-5)
    assert np.abs(unseen["vector"] - seen["vector"]).max() > 0.01
