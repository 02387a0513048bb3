"""The debug run from end to end: what it leaves, a rerun, search, embed, export, warm start."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sidray import storage
from sidray.cli import app
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import read_vectors
from sidray.embedding.runtime import RunModel
from sidray.evaluation.clicks import Clicks, Vectors, vector_ranks
from sidray.evaluation.metrics import recall
from sidray.export import export
from sidray.finished import RunFolder
from sidray.graph import build_graph
from sidray.models.towers import TextInput
from sidray.recipe import load_recipe
from sidray.run import run_recipe
from sidray.search import search
from sidray.show import show
from sidray.tokenizers.choose import smallest_sufficient
from tests.finished import catalogue_rows

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(debug_run: str) -> RunFolder:
    return RunFolder.open(debug_run)


@pytest.fixture(scope="module")
def model(run: RunFolder) -> RunModel:
    return RunModel.load(run)


def test_the_run_folder_holds_what_the_contract_says(run: RunFolder) -> None:
    report = Path(run.uri) / "report"
    names = {path.name for path in report.iterdir()}
    assert {"results.json", "report.md", "recall_at_10.png", "gallery.html", "smgr-tokenizers.png"} <= names
    assert {f"smgr-stage-{name}.png" for name in ("query2text", "image2text", "query2image", "query2item")} <= names
    saved = json.loads((report / "results.json").read_text())
    results, compared = saved["results"], saved["comparisons"]
    expected = ["popularity", "BM25", "smgr: after query2text", "smgr: with pictures", "smgr: reconstructed", "smgr"]
    assert list(results) == [*expected, "oracle"]
    everything = results["smgr"]["rows"]["all clicks"]
    assert (
        0 <= everything["recall@1"] <= everything["recall@10"] <= results["oracle"]["rows"]["all clicks"]["recall@10"]
    )
    recalls = {name: result["rows"]["all clicks"]["recall@10"] for name, result in results.items()}
    differences = {f"smgr against {name}": recalls["smgr"] - recalls[name] for name in recalls}
    assert set(compared) == set(differences) - {"smgr against smgr", "smgr against oracle"}
    for name, each in compared.items():
        assert each["difference"] == pytest.approx(differences[name])
        assert each["low"] <= each["difference"] <= each["high"]
    assert "stage-finetune" in show(run.uri)


def test_a_rerun_does_nothing_and_prints_the_same(run: RunFolder) -> None:
    said: list[str] = []
    again = run_recipe("smgr-debug", [f"runs.root={run.root}"], say=said.append)
    assert said == []
    assert again.folder == run.uri
    assert again.seconds < 5
    assert "oracle" in again.table


def test_new_items_get_the_vectors_and_sids_of_the_catalogue(run: RunFolder, model: RunModel, tmp_path: Path) -> None:
    """Raw pictures and texts, encoded anew, against the run's own item table."""
    pq.write_table(catalogue_rows(run, 40), tmp_path / "items.parquet")
    where = ["--items", str(tmp_path / "items.parquet"), "--out", str(tmp_path / "out"), "--max-bad-fraction", "0"]
    done = CliRunner().invoke(app, ["embed", run.uri, *where], catch_exceptions=False)
    assert "40 items embedded in " in done.stdout
    got = pq.read_table(tmp_path / "out" / "items.parquet")
    assert got.column_names == ["item_id", "vector", "sids", "model_key", "content_hash"]
    assert got.num_rows == 40
    table = lance.dataset(storage.join(run.output("table"), "items.lance")).to_table()
    rows = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
    own = table.take([rows[item] for item in got["item_id"].to_pylist()])
    assert got["sids"].to_pylist() == own["sids"].to_pylist()
    vectors = [np.array(column["vector"].to_pylist()) for column in (got, own)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=2e-5)
    assert set(got["model_key"].to_pylist()) == set(own["model_key"].to_pylist()) == {model.model_key}


def test_queries_get_the_vectors_of_the_evaluation(run: RunFolder, model: RunModel) -> None:
    clicks = lance.dataset(storage.join(run.output("catalogue"), "clicks.lance")).to_table().slice(0, 50)
    stored = read_vectors(storage.join(run.output("embed"), "queries.lance"), "vector")
    np.testing.assert_allclose(
        model.queries(clicks["query"].to_pylist()), stored[clicks["query_id"].to_numpy()], atol=2e-5
    )


def test_an_item_is_encoded_alone_as_in_a_batch(run: RunFolder, model: RunModel) -> None:
    items = catalogue_rows(run, 6).to_pylist()
    items[2]["image"] = None
    together = model.items(items)
    alone = [model.items([item]) for item in items]
    assert [each.sids[0] for each in alone] == together.sids
    np.testing.assert_allclose(np.concatenate([each.vectors for each in alone]), together.vectors, atol=1e-5)
    assert model.assigner is not None
    none = len(model.assigner.vocabulary) - 1
    assert together.sids[2][3:6] == [none] * 3  # <img_none> on each image level
    assert none not in together.sids[0]


def test_a_batch_of_texts_of_many_lengths_is_hardly_padded(model: RunModel, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[torch.Tensor] = []
    encode = model.final.encode_text

    def noted(inputs: TextInput) -> torch.Tensor:
        masks.append(inputs.mask)
        return encode(inputs)

    monkeypatch.setattr(model.final, "encode_text", noted)
    titles = ["cat", "a cat and a dog and a fish", "dog", "a fish and a dog and a cat", "fish"]
    together = model.items([{"title": title} for title in titles]).vectors
    assert sum(mask.numel() for mask in masks) <= 1.1 * sum(int(mask.sum()) for mask in masks)
    np.testing.assert_allclose(
        np.concatenate([model.items([{"title": title}]).vectors for title in titles]), together, atol=1e-5
    )


def test_search_is_the_exact_answer_inside_the_partition(run: RunFolder, model: RunModel) -> None:
    table = lance.dataset(storage.join(run.output("table"), "items.lance")).to_table()
    scores = np.array(table["vector"].to_pylist()) @ model.queries(["happy animal"])[0]
    inside = np.array(table["partition"].to_pylist()) == "objects"
    best = np.argsort(-np.where(inside, scores, -2))[:5]
    hits = search(run, "happy animal", None, ["objects"], 5)
    assert {hit.partition for hit in hits} == {"objects"}
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)
    assert len(search(run, "happy animal", None, [], 7)) == 7


def test_a_picture_is_a_query(run: RunFolder, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(catalogue_rows(run, 1)["image"][0].as_py())
    assert len(search(run, "", str(picture), [], 3)) == 3
    assert search(run, "cat", str(picture), [], 3) != search(run, "cat", None, [], 3)


def test_export_is_plain_hugging_face(run: RunFolder, model: RunModel, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    names = export(run, str(tmp_path / "out"))
    assert names == ["image", "pretrained", "sidray.json", "text", "tokenizers", "towers.safetensors"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "text")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "text").eval()
    AutoModel.from_pretrained(tmp_path / "out" / "image")
    item = {**catalogue_rows(run, 1).to_pylist()[0]}
    sids = model.items([item]).sids[0]
    assert model.assigner is not None
    text = model.prompter.item_text(item) + " SIDs:" + "".join(model.assigner.vocabulary.tokens[n] for n in sids)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
    with torch.no_grad():
        pooled = lm.base_model(input_ids=ids).last_hidden_state[:, -1]
        vector = torch.nn.functional.normalize(model.final.item(pooled), dim=-1)[0].numpy()
    np.testing.assert_allclose(vector, model.items([item]).vectors[0], atol=1e-4)
    before = tmp_path / "out" / "pretrained"
    heads = load_file(before / "towers.safetensors")
    assert all(
        torch.equal(heads[name], value) for name, value in model.pretrained.mlp_i.state_dict(prefix="mlp_i.").items()
    )
    ids = tokenizer(model.prompter.item_text(item), return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
    plain = AutoModelForCausalLM.from_pretrained(before / "text").eval()
    with torch.no_grad():
        pooled = plain.base_model(input_ids=ids).last_hidden_state[:, -1]
        own = model.pretrained.encode_text(TextInput(ids, torch.ones_like(ids).bool()))
    torch.testing.assert_close(pooled, own, atol=1e-4, rtol=1e-4)  # what the text's SIDs are made of


def test_a_run_that_continues_another_has_its_codebooks_and_starts_from_its_towers(run: RunFolder) -> None:
    own = ["stages=[]", f"init_from={run.uri}", f"runs.root={run.root}", "evaluation.after={}"]
    graph = build_graph(load_recipe("smgr-debug", own)[0])
    for role in ("tokenizers", "pretrained-towers"):
        assert graph[role].folder == run.steps[role]
    first = graph["stage-doc2docid"]
    assert first.inputs["start"].folder == run.steps["final-towers"] != graph["final-towers"].folder


@pytest.mark.slow  # the test before it has its steps
def test_a_warm_start_keeps_the_codebooks(run: RunFolder, tmp_path: Path) -> None:
    """New clicks, frozen codebooks: the old items keep their SIDs, and training goes on from the final towers."""
    items = catalogue_rows(run, 300)
    clicks = lance.dataset(storage.join(run.output("catalogue"), "clicks.lance")).to_table()
    ids = np.array(items["item_id"].to_pylist())[clicks["item_row"].to_numpy()]
    pq.write_table(items, tmp_path / "items.parquet")
    pq.write_table(
        pa.table({"query": clicks["query"], "item_id": ids, "split": clicks["split"]}), tmp_path / "c.parquet"
    )
    recipe = tmp_path / "warm.yaml"
    recipe.write_text(
        f"extends: smgr-debug\nname: warm\nruns: {{root: {run.root}}}\ninit_from: {run.uri}\nstages: []\n"
        f"data: {{source: tables, items: {tmp_path}/items.parquet, clicks: {tmp_path}/c.parquet, limit: null}}\n"
        "sid_stages: [{name: finetune, tasks: {query2item: 1}, item: sids}]\nevaluation: {after: {}}\n"
    )
    warm = RunFolder.open(run_recipe(str(recipe), [], say=lambda line: None).folder)
    assert warm.steps["tokenizers"] == run.steps["tokenizers"]
    assert warm.steps["pretrained-towers"] == run.steps["pretrained-towers"]
    sids = [
        lance.dataset(storage.join(each.output("sids"), "sids.lance")).to_table(columns=["sids"])["sids"].to_pylist()
        for each in (run, warm)
    ]
    assert sids[0] == sids[1]
    assert warm.steps["final-towers"] != run.steps["final-towers"]
    assert warm.manifest("final-towers")["inputs"]["start"] == run.steps["final-towers"]


def test_the_item_codebook_is_the_smallest_sufficient_one(run: RunFolder) -> None:
    """The recall that chose it, against the codebook that was kept; and that one's, click by click, against brute
    force. Clicks whose scores lie so near the tie tolerance that rounding decides are left out."""
    health = storage.read_json(storage.join(run.output("tokenizers"), "health.json"))
    recalls = {int(size): value for size, value in health["item"]["valid_recall@10_by_entries"].items()}
    chosen = health["item"]["entries"]
    assert set(recalls) == {4, 8}
    assert chosen == smallest_sufficient(recalls)
    assert "valid_recall@10_by_entries" not in health["text"]
    catalogue = Catalogue.open(run.output("catalogue"))
    sids = storage.join(run.output("sids"), "sids.lance")
    kept = Vectors(run.output("pretrained"), "vector", sids)
    by_click = recall(*vector_ranks(Clicks.of(catalogue, "valid"), kept), 10)
    assert by_click.mean() == pytest.approx(recalls[chosen], abs=2e-3)
    partitions = np.array(catalogue.items(None, ["partition"])["partition"].to_pylist())
    queries = read_vectors(storage.join(run.output("pretrained"), "queries.lance"), "vector")
    items = read_vectors(sids, "quantised").astype(np.float64)
    checked = 0
    for click, found in zip(catalogue.clicks("valid").to_pylist(), by_click, strict=True):
        rows = [
            row for row in catalogue.clicked_items if partitions[row] == click["partition"] or not click["partition"]
        ]
        units = items[rows] / np.linalg.norm(items[rows], axis=1, keepdims=True)
        scores = units @ (query := queries[click["query_id"]]) / np.linalg.norm(query)
        difference = scores - scores[rows.index(click["item_row"])]
        if (abs(abs(difference) - 1e-5) < 2e-7).any():
            continue
        equal = int((abs(difference) <= 1e-5).sum())
        assert found == pytest.approx(np.clip((10 - int((difference > 1e-5).sum())) / equal, 0, 1), abs=1e-9)
        checked += 1
    assert checked > 50
