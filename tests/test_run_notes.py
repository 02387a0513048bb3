"""NoteLLM-2's debug run from end to end: what it leaves, new notes, search, export, resume, ZeRO-3, cached pictures."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sidray import storage
from sidray.batch_embed import batch_embed
from sidray.data.catalogue import Catalogue
from sidray.embedding.encoded import load_model
from sidray.embedding.note_runtime import NoteModel
from sidray.embedding.pool import read_vectors
from sidray.errors import UserError
from sidray.evaluation.pairs import Pairs, pair_ranks, pair_recall
from sidray.export import export
from sidray.finished import RunFolder
from sidray.graph import build_graph
from sidray.models.inputs import pixels
from sidray.models.mlrm import VISUAL
from sidray.recipe import Recipe, load_recipe
from sidray.run import run_recipe
from sidray.search import search
from sidray.serving.app import build_run
from sidray.serving.embedder import Embedder
from sidray.serving.messages import NewItem, Refusal
from sidray.serving.settings import EmbedderSettings
from sidray.show import show
from sidray.steps import Store, Work
from sidray.training import stage as stage_module
from sidray.training import worker
from sidray.training.record import Record
from tests.finished import catalogue_rows, losses

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("notes")
    return RunFolder.open(run_recipe("notellm2-debug", [f"runs.root={root}"], say=lambda line: None).folder)


@pytest.fixture(scope="module")
def model(run: RunFolder) -> NoteModel:
    model = load_model(run)
    assert isinstance(model, NoteModel)
    return model


def test_the_run_folder_holds_the_tables_of_the_paper(run: RunFolder) -> None:
    report = Path(run.uri) / "report"
    names = {path.name for path in report.iterdir()}
    assert {"results.json", "report.md", "recall.png", "gallery.html", "table.txt"} <= names
    assert {"NoteLLM-2-stage-note2note.png", "basic method-stage-note2note.png"} <= names
    saved = json.loads((report / "results.json").read_text())
    rows = saved["rows"]
    methods = ["NoteLLM-2", "basic method"]
    alone = [f"NoteLLM-2, {given} only" for given in ("image", "text")]
    zero_shot = ["zero-shot image", "zero-shot text", "zero-shot text + image"]
    assert set(rows) == {"popularity", "BM25", *methods, *alone, *zero_shot}
    assert [rows[label]["given"] for label in ("popularity", "BM25", "basic method")] == ["none", "text", "multimodal"]
    text = (report / "report.md").read_text()
    for title in ("Methods", "Given one modality alone (table 3)", "Zero-shot (table 10)", "Long pairs (table 11)"):
        assert f"## {title}" in text
    assert {each["label"] for each in saved["comparisons"]} == {"NoteLLM-2"}
    assert "NoteLLM-2" in show(run.uri)


def test_its_recall_is_that_of_its_vectors(run: RunFolder) -> None:
    pairs = Pairs.of(Catalogue.open(run.output("catalogue")), "test")
    vectors = read_vectors(storage.join(run.output("embed"), "items.lance"), "vector")
    expected = pair_recall(pair_ranks(pairs, vectors), "recall@10").mean()
    saved = storage.read_json(storage.join(run.uri, "report", "results.json"))["rows"]["NoteLLM-2"]["results"][0]
    assert saved["rows"]["all pairs"]["recall@10"] == pytest.approx(expected)


def test_a_rerun_does_nothing_and_prints_the_same(run: RunFolder) -> None:
    said: list[str] = []
    again = run_recipe("notellm2-debug", [f"runs.root={run.root}"], say=said.append)
    assert said == []
    assert again.folder == run.uri
    assert again.seconds < 5
    assert again.table == (Path(run.uri) / "report" / "table.txt").read_text()


def test_new_notes_get_the_vectors_of_the_catalogue(run: RunFolder, model: NoteModel) -> None:
    expected = read_vectors(storage.join(run.output("embed"), "items.lance"), "vector")[:40]
    rows = catalogue_rows(run, 40).to_pylist()
    encoded = model.items(rows)
    np.testing.assert_allclose(encoded.vectors, expected, atol=1e-4)
    assert encoded.sids == [[]] * 40
    alone = model.items([rows[3]]).vectors
    np.testing.assert_allclose(alone, expected[3:4], atol=1e-4)
    without = model.items([{**rows[3], "image": None}]).vectors
    assert not np.allclose(without, alone, atol=1e-3)
    np.testing.assert_allclose(without, model.queries([rows[3]["title"]]), atol=1e-5)  # a text is a note of a title
    assert not np.allclose(model.pictures([rows[3]["image"]]), alone, atol=1e-3)


def test_pictures_of_other_modes_are_read(model: NoteModel) -> None:
    """CMYK, a palette, 16 bits of grey: as RGB, without a warning to the caller."""
    for mode, kind in (("CMYK", "JPEG"), ("P", "PNG"), ("I;16", "PNG"), ("L", "PNG")):
        sink = io.BytesIO()
        Image.new(mode, (40, 30)).save(sink, kind)
        vector = model.items([{"title": "a note", "image": sink.getvalue()}]).vectors
        assert np.isfinite(vector).all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_batch_of_new_notes(run: RunFolder, model: NoteModel, tmp_path: Path) -> None:
    table = catalogue_rows(run, 12)
    images = [None if row % 3 == 0 else image for row, image in enumerate(table["image"].to_pylist())]
    titles = ["" if row == 5 else title for row, title in enumerate(table["title"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("image"), "image", [pa.array(images, pa.binary())])
    table = table.set_column(table.schema.get_field_index("title"), "title", [pa.array(titles)])
    pq.write_table(table, tmp_path / "notes.parquet")
    summary = batch_embed(run, str(tmp_path / "notes.parquet"), str(tmp_path / "out"), max_bad_fraction=0.2)
    assert summary["items"] == 11
    assert summary["quarantined"] == {"items: null or empty title": 1}
    found = pq.read_table(tmp_path / "out" / "items.parquet")
    kept = [row for row in table.to_pylist() if row["title"]]
    vectors = np.stack(found["vector"].to_pylist())
    np.testing.assert_allclose(vectors, model.items(kept).vectors, atol=1e-4)


def test_search_by_words_and_by_a_note(run: RunFolder, model: NoteModel) -> None:
    row = catalogue_rows(run, 1).to_pylist()[0]
    hits = search(run, row["title"], None, [], 5)
    assert len(hits) == 5
    assert hits[0].score >= hits[-1].score


def test_the_service_takes_the_run(run: RunFolder) -> None:
    application = build_run({"run": run.uri})
    assert application is not None
    assert run.trained_role == "note-model"


async def test_the_embedder_of_the_service_encodes_new_notes(run: RunFolder, model: NoteModel) -> None:
    embedder = Embedder(run, EmbedderSettings())
    described = await embedder.describe()
    assert (described.dimension, described.images, described.id) == (16, True, run.model_key)
    row = catalogue_rows(run, 1).to_pylist()[0]
    item = NewItem(item_id="new", title=row["title"], partition=row["partition"], fields={}, image=row["image"])
    encoded = await embedder.encode_items([item])
    np.testing.assert_allclose(encoded.vectors, model.items([row]).vectors, atol=1e-5)
    found = await embedder.embed("red heart", None)
    assert not isinstance(found, Refusal)
    np.testing.assert_allclose(found.vector, model.queries(["red heart"])[0], atol=1e-5)


def test_export_is_plain_hugging_face(run: RunFolder, model: NoteModel, tmp_path: Path) -> None:
    """A note's vector from the exported folders alone, with Hugging Face's own classes."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    assert export(run, str(tmp_path / "out")) == ["image", "mlrm.safetensors", "sidray.json", "text"]
    card = json.loads((tmp_path / "out" / "sidray.json").read_text())
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "text").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "text")
    vision = AutoModel.from_pretrained(tmp_path / "out" / "image").eval()
    weights = load_file(tmp_path / "out" / "mlrm.safetensors")
    row = catalogue_rows(run, 1).to_pylist()[0]
    prompt = model.prompter.notes([row], [True], "micl")[0]
    assert tokenizer.convert_ids_to_tokens([i for i in prompt if i >= model.model.base]) == ["<IMG_EMB>"]
    assert card["note"]["connector"]["queries"] == 4
    with torch.no_grad():
        values = pixels([row["image"]], 32)[0].float() / 255
        grid = vision(pixel_values=(values - 0.5) / 0.5).last_hidden_state
        connector = model.model.connector
        assert connector is not None
        for name, value in connector.named_parameters():
            torch.testing.assert_close(weights[f"connector.{name}"], value)
        visual = iter(connector(grid[:, 1:])[0])
        table = lm.get_input_embeddings().weight
        states = [s for i in prompt for s in ([next(visual) for _ in range(4)] if i == VISUAL else [table[i]])]
        n = lm.model(inputs_embeds=torch.stack(states)[None]).last_hidden_state[:, -1]
        v = torch.nn.functional.layer_norm(
            grid[:, 0], [24], weights["whole.normalise.weight"], weights["whole.normalise.bias"]
        )
        v = v @ weights["whole.linear.weight"].T + weights["whole.linear.bias"]
        z = torch.sigmoid(torch.cat([v, n], 1) @ weights["gate.linear.weight"].T + weights["gate.linear.bias"])
        out = (z * v + (1 - z) * n) @ weights["projector.weight"].T + weights["projector.bias"]
        np.testing.assert_allclose(
            torch.nn.functional.normalize(out, dim=-1).numpy(), model.items([row]).vectors, atol=1e-4
        )


def again(recipe: Recipe, root: str, folder: Path) -> list[dict[str, float]]:
    """The stage computed once more into `folder`; its history. Inputs that are not done yet are computed."""
    store = Store(root, say=lambda line: None)
    step = build_graph(recipe)["stage-note2note"]
    folder.mkdir()
    step.run(Work(str(folder), {name: store.ensure(needed) for name, needed in step.inputs.items()}))
    return Record.read(str(folder)).steps


@contextmanager
def killed_at(step: int, flag: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rank 1 dies by SIGKILL in that step, once."""

    def train_and_die(config: dict[str, Any]) -> None:
        average, steps = worker.averaged, 0

        def counting(metrics: Any) -> dict[str, float]:
            nonlocal steps
            steps += "loss" in metrics
            if steps == step and worker.rank() == 1 and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return average(metrics)

        worker.averaged = counting
        worker.train_stages(config)

    monkeypatch.setattr(stage_module, "train_stages", train_and_die)
    yield
    assert flag.exists()


def test_a_killed_worker_and_zero_3_on_the_host_end_with_the_same_losses(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3 with everything offloaded and killed after its first checkpoint, against ZeRO-0 undisturbed: dropout is
    drawn as it would have been."""
    recipe = load_recipe("notellm2-debug", [])[0].with_seeds()[0]
    undisturbed = Record.read(run.output("stage-note2note")).steps
    stage = recipe.stages[0].model_copy(update={"validations": 2})  # a checkpoint after step 3 of 6
    training = recipe.training.model_copy(update={"zero_stage": 3, "offload": "parameters"})
    recipe = recipe.model_copy(update={"stages": [stage], "training": training})
    with killed_at(5, tmp_path / "killed", monkeypatch):
        history = again(recipe, run.root, tmp_path / "out")
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(losses(history), losses(undisturbed), rtol=1e-4)


@pytest.mark.slow  # tests/models/test_mlrm.py holds cached grids and states to pixels and ids
def test_cached_pictures_and_prompts_train_as_raw_ones(run: RunFolder, tmp_path: Path) -> None:
    """The loss curve over grids in fp16 and cached prompts against the one over pixels that nothing learns to see."""
    weights = storage.join(run.root, "steps", run.steps["text-weights"], run.manifest("text-weights")["attempt"])
    both = [f"model.text.weights={weights}", "training.workers=1"]
    raw = load_recipe("notellm2-debug", [*both, "stage_overrides.note2note.train=[connector,mlp]"])[0].with_seeds()[0]
    frozen = raw.model.image.model_copy(update={"frozen": True})
    cached = raw.model_copy(update={"model": raw.model.model_copy(update={"image": frozen})})
    curves = [losses(again(each, run.root, tmp_path / str(n))) for n, each in enumerate((raw, cached))]
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-3)
    text = raw.model.text.model_copy(update={"frozen_layers": 1})
    lower = raw.model_copy(update={"model": raw.model.model_copy(update={"text": text, "image": frozen})})
    graph = build_graph(lower)
    assert {"note-cache-micl", "grid-cache"} <= set(graph.steps)
    assert np.isfinite(losses(again(lower, run.root, tmp_path / "lower"))).all()


def test_a_catalogue_without_pairs_is_refused_with_its_remedy(ray_session: None, tmp_path: Path) -> None:
    rows = [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    clicks = [{"query": "thing", "item_id": "i1", "split": "train"}]
    pq.write_table(pa.Table.from_pylist(clicks), tmp_path / "clicks.parquet")
    given = [f"data.{name}={tmp_path / name}.parquet" for name in ("items", "clicks")]
    overrides = ["data.source=tables", *given, f"runs.root={tmp_path / 'root'}"]
    clicked = build_graph(load_recipe("smgr-debug", overrides)[0])
    Store(str(tmp_path / "root"), say=lambda line: None).ensure(clicked["catalogue"])  # which another recipe needs
    with pytest.raises(UserError, match=r"no pairs to train on(.|\n)*data.pairs(.|\n)*data.events"):
        run_recipe("notellm2-debug", overrides, say=lambda line: None)
