"""Saliency as a step of a run: where the graph has it, what it writes, and how the report shows it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.errors import UserError
from sidray.graph import build_graph
from sidray.graph_base import Graph
from sidray.models.mlrm import build_mlrm
from sidray.models.trained import save_trained, trained_state
from sidray.recipe import load_recipe
from sidray.report_pairs import PairsReport
from sidray.steps import Step, Store, Summary, Work
from sidray.training.plots import plot_saliencies
from sidray.training.saliency import pair_batches, trained_saliency
from sidray.training.settings import StageSettings


def notes_graph(root: Path, *overrides: str, variant: str = "") -> Graph:
    recipe, variants, _ = load_recipe("notellm2-debug", [f"runs.root={root}", *overrides])
    return build_graph((variants[variant] if variant else recipe).with_seeds()[0])


def test_the_graph_has_saliency_where_it_is_asked_for_and_an_lm_runs(tmp_path: Path) -> None:
    assert "saliency" not in notes_graph(tmp_path)
    graph = notes_graph(tmp_path, "evaluation.saliency=true")
    assert graph["saliency"].inputs["towers"].key == graph["note-model"].key
    assert graph["embed"].key == notes_graph(tmp_path)["embed"].key
    more = notes_graph(tmp_path, "evaluation.saliency=true", "evaluation.saliency_notes=100")
    assert more["saliency"].key != graph["saliency"].key
    alone = "model.note={inputs: image, early: false, micl: false, late: false}"
    image = notes_graph(tmp_path, "evaluation.saliency=true", alone, "stages=[{name: n, tasks: {note2note: 1}}]")
    assert "saliency" not in image


def test_means_in_place_of_the_compressed_word_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    notes_graph(tmp_path, "model.text.pooling=mean")
    with pytest.raises(UserError, match=r"model\.text\.pooling=mean"):
        notes_graph(tmp_path, "model.text.pooling=mean", "evaluation.saliency=true")


@pytest.mark.ray
def test_the_step_writes_scores_and_a_picture(ray_session: None, tmp_path: Path) -> None:
    """On the initial weights, which stand in for trained ones."""
    graph = notes_graph(tmp_path, "evaluation.saliency=true", "evaluation.saliency_notes=100", "data.limit=200")
    store, step = Store(str(tmp_path), say=lambda line: None), graph["saliency"]
    inputs = {role: store.ensure(needed) for role, needed in step.inputs.items() if role != "towers"}
    model = build_mlrm(Path(inputs["text-weights"]), Path(inputs["image-weights"]), graph.recipe.model, False)
    (tmp_path / "towers").mkdir()
    save_trained(trained_state(model), tmp_path / "towers" / "towers.safetensors")
    work = Work(str(tmp_path / "out"), {**inputs, "towers": str(tmp_path / "towers")})
    (tmp_path / "out").mkdir()
    summary = step.run(work)
    found = storage.read_json(work.path("saliency.json"))
    assert found["layers"] == [0, 1]
    assert found["notes"] == summary["notes"] == 128  # two batches of 32 pairs
    assert summary["S_v in layer 0"] == found["relative"]["S_v"][0]
    assert np.sum([found["relative"][name] for name in ("S_v", "S_t", "S_o")], 0) == pytest.approx([1, 1])
    assert all(value >= 0 for name in ("S_v", "S_t", "S_o") for value in found[name])
    assert Image.open(work.path("saliency.png")).format == "PNG"
    again = trained_saliency(graph.recipe, graph.recipe.stages[-1], work)
    assert again == summary
    check_batches(Catalogue.open(inputs["catalogue"]))


def check_batches(catalogue: Catalogue) -> None:
    train = set(catalogue.pairs("train")["pair_row"].to_pylist())
    stage = StageSettings(name="s", tasks={"note2note": 1.0}, batch_size=5, seed=1)
    few = pair_batches(catalogue, stage, 21)
    assert few.shape == (3, 5)
    every = pair_batches(catalogue, stage.model_copy(update={"batch_size": 1000}), 10**6)
    assert every.shape == (len(train) // 32, 32)
    for drawn in (few, every):
        assert len(set(drawn.ravel().tolist())) == drawn.size
        assert set(drawn.ravel().tolist()) <= train
    other = pair_batches(catalogue, stage.model_copy(update={"seed": 2}), 21)
    assert few.tolist() != other.tolist()


def fake_step(name: str, result: dict[str, Any]) -> Step:
    def run(work: Work) -> Summary:
        storage.write_json(work.path("saliency.json"), result)
        return {}

    return Step("saliency", run, {"variant": name}, 1)


def test_the_report_shows_the_variants_side_by_side(tmp_path: Path) -> None:
    recipe = load_recipe("notellm2-debug", [])[0]
    visual = {"S_v": [0.25, 0.5], "S_t": [0.5, 0.5], "S_o": [0.25, 0.0]}
    text = {"S_v": None, "S_t": [0.75, 1.0], "S_o": [0.25, 0.0]}
    steps = {
        name: fake_step(name, {"layers": [1, 2], "relative": relative, "notes": 64})
        for name, relative in ((recipe.label, visual), ("text | LM", text))
    }
    store = Store(str(tmp_path / "store"), say=lambda line: None)
    for step in steps.values():
        store.ensure(step)
    graphs = {name: [Graph(recipe, {"saliency": step})] for name, step in steps.items()}
    graphs["image encoder"] = [Graph(recipe, {})]
    PairsReport(recipe, graphs)._saliency(tmp_path, store)
    table = (tmp_path / "saliency.md").read_text()
    assert "| NoteLLM-2 | 1 | 0.250 | 0.500 | 0.250 | 64 |\n" in table
    assert "| text \\| LM | 2 | - | 1.000 | 0.000 | 64 |\n" in table
    assert Image.open(tmp_path / "saliency.png").width > 600
    alone = tmp_path / "alone"
    alone.mkdir()
    PairsReport(recipe, {recipe.label: graphs[recipe.label]})._saliency(alone, store)
    assert not list(alone.iterdir())


def test_many_variants_go_into_rows_and_strange_names_are_shown_as_they_are() -> None:
    values = {"S_v": None, "S_t": [1.0], "S_o": [0.0]}
    sizes = [
        Image.open(io.BytesIO(plot_saliencies({f"$a_{n} {{": ([3], values) for n in range(count)}))).size
        for count in (4, 5)
    ]
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > 1.5 * sizes[0][1]
