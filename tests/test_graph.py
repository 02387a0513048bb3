"""A step's key follows from what its result depends on, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidray import graph_base, storage
from sidray.errors import UserError
from sidray.graph import build_graph
from sidray.recipe import Recipe, load_recipe, run_folder_name
from sidray.run import _write_run, seeded_graphs
from sidray.steps import Store


def keys(*overrides: str, recipe: str = "smgr-hm") -> dict[str, str]:
    folder = ["data.folder=x"] * recipe.endswith("-hm")
    loaded, _, _ = load_recipe(recipe, [*folder, *overrides])
    return {role: step.key for role, step in build_graph(loaded.with_seeds()[0]).steps.items()}


@pytest.mark.parametrize(
    ("override", "changed", "kept"),
    [
        ("model.image.pool=last", ["image-weights", "image-cache", "stage-query2text"], ["text-cache", "text-weights"]),
        ("model.image.weights=efficientnet-lite2", ["image-weights", "image-cache"], ["text-cache", "text-weights"]),
        ("model.text.layers=7", ["text-weights", "text-cache", "stage-query2text"], ["image-cache"]),
        ("model.text.max_tokens=20", ["text-cache", "stage-query2text"], ["text-weights", "image-cache"]),
        ("model.text.pooling=eos", ["stage-query2text"], ["text-cache", "text-weights"]),
        ("training.precision=fp32", ["stage-query2text"], ["image-cache", "text-cache"]),
        ("tokenizer.token_start=random", ["stage-doc2docid", "index"], ["tokenizers", "sids", "stage-query2item"]),
        ("tokenizer.gamma=0.5", ["tokenizers", "index"], ["stage-query2item", "pretrained"]),
        ("tokenizer.epochs=1", ["tokenizers", "sids", "stage-doc2docid"], ["stage-query2item", "negatives"]),
        ("training.workers=2", [], ["stage-query2text", "index"]),
        ("controls.shuffle_images=1", ["stage-image2text", "sids", "index"], ["stage-query2text", "image-cache"]),
        (
            "tokenizer.modalities=[text]",
            ["sids", "stage-doc2docid", "index"],
            ["tokenizers", "pretrained", "negatives"],
        ),
        ("controls.shuffle_sids=1", ["sids", "stage-doc2docid", "embed"], ["tokenizers", "pretrained", "negatives"]),
        ("model.fusion.mlp=true", ["stage-query2item", "index"], ["image-cache", "text-cache"]),
        ("seeds=[7]", ["stage-query2text", "tokenizers", "stage-finetune"], ["image-cache", "text-cache", "catalogue"]),
        ("embedding.batch_size=7", [], ["stage-query2text", "text-cache", "index"]),
        ("embedding.precision=bf16", ["text-cache", "pretrained", "embed"], ["image-cache", "text-weights"]),
    ],
)
def test_what_a_step_depends_on(override: str, changed: list[str], kept: list[str]) -> None:
    before, after = keys(), keys(override)
    assert [role for role in changed if after[role] == before[role]] == []
    assert [role for role in kept if after[role] != before[role]] == []


@pytest.mark.parametrize(
    ("override", "changed", "kept"),
    [
        (
            "model.note.connector.queries=8",
            ["stage-note2note", "embed"],
            ["note-cache-micl", "grid-cache", "zero-shot"],
        ),
        ("model.note.max_words={title: 5}", ["note-cache-micl", "note-cache-text", "zero-shot"], ["grid-cache"]),
        ("model.note.late=false", ["stage-note2note", "given-text"], ["note-cache-micl", "zero-shot", "catalogue"]),
        ("model.text.pooling=mean", ["stage-note2note", "zero-shot"], ["note-cache-micl", "text-weights"]),
        ("embedding.precision=fp32", ["note-cache-micl", "embed", "zero-shot"], ["grid-cache", "text-weights"]),
        ("seeds=[7]", ["stage-note2note", "index"], ["note-cache-micl", "grid-cache", "text-weights", "image-weights"]),
        ("controls.shuffle_images=1", ["stage-note2note", "zero-shot"], ["grid-cache", "note-cache-micl"]),
        ("tokenizer.token_lr=0.5", ["stage-note2note", "embed"], ["grid-cache", "note-cache-micl", "zero-shot"]),
        ("controls.shuffle_pairs=1", ["stage-note2note", "embed"], ["grid-cache", "note-cache-micl", "zero-shot"]),
        ("embedding.batch_size=7", [], ["stage-note2note", "note-cache-micl", "index"]),
        ("evaluation.saliency_notes=9", [], ["stage-note2note", "embed"]),
    ],
)
def test_what_a_step_on_pairs_depends_on(override: str, changed: list[str], kept: list[str]) -> None:
    before, after = keys(recipe="notellm2-hm"), keys(override, recipe="notellm2-hm")
    assert [role for role in changed if after[role] == before[role]] == []
    assert [role for role in kept if after[role] != before[role]] == []


@pytest.mark.parametrize(
    "override",
    [
        "tokenizer.modalities=[item, image, text]",
        "controls.shuffle_sids=null",
        "controls.shuffle_pairs=null",
        "model.fusion.mlp=false",
    ],
)
def test_settings_that_came_later_are_in_no_key_at_their_defaults(override: str) -> None:
    assert keys(override) == keys()
    values: Any = load_recipe("smgr-hm", ["data.folder=x", override])[0].dump()
    *path, name = override.partition("=")[0].split(".")
    for part in path:
        values = values[part]
    assert name not in values


def test_a_tokenizer_of_ones_own_is_trained_on_prompts_as_they_are_cut() -> None:
    before, after = (keys(*cut, recipe="notellm2-debug") for cut in ((), ("model.note.max_words={title: 5}",)))
    assert before["text-weights"] != after["text-weights"]


ORDERS = {
    "order1": ["query2image", "image2text", "query2text", "query2item"],
    "order2": ["query2image", "query2text", "image2text", "query2item"],
    "order3": ["query2text", "query2image", "image2text", "query2item"],
    "order4": ["image2text", "query2image", "query2text", "query2item"],
    "order5": ["image2text", "query2text", "query2image", "query2item"],
    "smgr": ["query2text", "image2text", "query2image", "query2item"],
}


@pytest.mark.parametrize("name", ["reproduce-pictograms", "reproduce-hm", "reproduce-hm-base"])
def test_every_row_gets_what_smgr_gives_its_tasks(name: str) -> None:
    """Each task of a row sees as many samples as in SMGR; a table's rows of pretraining alone, as in its stages."""
    recipe, variants, _ = load_recipe(name, ["data.folder=x"] * ("-hm" in name))
    rows = {"smgr": recipe, **variants}
    for label, order in ORDERS.items():
        assert [stage.name for stage in rows[label].stages] == order, "appendix D"
    whole, pretrained = _epochs(recipe, sid_stages=True), _epochs(recipe, sid_stages=False)
    for label, row in variants.items():
        wanted = pretrained if label in {*ORDERS, "joint", "random", "joint-no-pictures"} else whole
        if not label.endswith("-long"):
            found = _epochs(row, sid_stages=True)
            assert found == pytest.approx({task: wanted[task] for task in found}), label
    stages = [stage for row in rows.values() for stage in (*row.stages, *row.sid_stages)]
    assert {stage.rows for stage in stages} == {"items"}, "an epoch is as many samples for every task"
    assert len({stage.batch_size for stage in stages}) == 1
    smgr = [*recipe.stages, *recipe.sid_stages]
    for label, stages in {"dual-tower-long": smgr, "mtiger-long": smgr, "joint-long": recipe.stages}.items():
        found = [*variants[label].stages, *variants[label].sid_stages]
        assert sum(stage.epochs for stage in found) == pytest.approx(sum(stage.epochs for stage in stages)), label


def _epochs(recipe: Recipe, sid_stages: bool) -> dict[str, float]:
    stages = [*recipe.stages, *(recipe.sid_stages if sid_stages else [])]
    found: dict[str, float] = {}
    for stage in stages:
        for task in stage.tasks:
            found[task] = found.get(task, 0) + stage.epochs
    return found


def test_a_seed_is_that_of_everything_that_is_drawn() -> None:
    recipe = load_recipe("smgr-hm", ["data.folder=x", "seeds=[7, 8]"])[0]
    for seed, one in zip((7, 8), recipe.with_seeds(), strict=True):
        drawn = [one.model, one.tokenizer, *one.stages, *one.sid_stages]
        assert {section.seed for section in drawn} == {seed}


def test_the_rows_of_smgr_share_what_they_have_in_common() -> None:
    recipe, variants, _ = load_recipe("reproduce-hm", ["data.folder=x"])
    graphs = {label: build_graph(each.with_seeds()[0]) for label, each in {"smgr": recipe, **variants}.items()}
    for rows in (
        ["joint", "random", "joint-no-pictures", "mtiger", "tiger"],
        ["smgr", "shuffled-sids", "no-sids", "sids-text", "tasks-causal"],
    ):
        assert len({graphs[label]["pretrained-towers"].key for label in rows}) == 1
        assert len({graphs[label]["tokenizers"].key for label in rows if "tokenizers" in graphs[label]}) == 1
    ends = {label: graph["embed"].key for label, graph in graphs.items()}
    assert len(set(ends.values())) == len(ends)
    tasks = {
        label: {stage.name: set(stage.tasks) for stage in graph.recipe.sid_stages} for label, graph in graphs.items()
    }
    assert tasks["tiger"] == tasks["mtiger"] == {"finetune": {"query2item"}}
    assert tasks["tasks-doc2docid"]["finetune"] == {"query2item", "query2item_hard"}
    assert tasks["no-sids"] == {"finetune": {"query2item", "query2item_hard", "causal"}}


def test_the_methods_of_table_4_share_what_they_have_in_common() -> None:
    recipe, variants, _ = load_recipe("notellm2-hm", ["data.folder=x"])
    graphs = {label: build_graph(each) for label, each in {recipe.label: recipe, **variants}.items()}
    assert len({graph["catalogue"].key for graph in graphs.values()}) == 1
    assert len({graph["grid-cache"].key for graph in graphs.values() if "grid-cache" in graph}) == 1
    assert graphs["NoteLLM-2"]["note-cache-micl"].key == graphs["mICL"]["note-cache-micl"].key
    assert graphs["basic method"]["note-cache-basic"].key == graphs["Omni-Retrieval"]["note-cache-basic"].key
    assert graphs["text LM"]["note-cache-text"].key == graphs["only late fusion"]["note-cache-text"].key
    assert "grid-cache" not in graphs["text LM"]
    given = load_recipe("notellm2-hm", ["data.folder=x", "variants.image encoder.evaluation.given=[image, text]"])[1]
    assert not any(role.startswith("given-") for role in build_graph(given["image encoder"]).steps)  # it reads no text
    assert not any(role.startswith("note-cache") for role in graphs["image encoder"].steps if role != "note-cache-text")
    assert len({graph["stage-note2note"].key for graph in graphs.values()}) == len(graphs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sid_stages=[{name: s, tasks: {doc2docid: 1}}]", "sid_stages need towers"),
        ("stages=[{name: s, tasks: {query2item: 1}}]", "a model with model.note has note2note"),
        ("stages=[{name: s, tasks: {note2note: 1, query2item: 1}}]", "cannot share a stage with tasks on pairs"),
        ("model.note.micl=false", "note2note_visual needs model.note.micl"),
        ("controls.random_images=1", "need towers"),
        ("controls.without_images=true", "need towers"),
        ("model.note.early=false", "micl compresses the picture inside the LM"),
        ("model.image.weights=none", "note looks at pictures, and image.weights is none"),
        ("seeds=[1, 1]", "names one twice"),
        ("tokenizer.modalities=[texts]", "tokenizer.modalities.0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("notellm2-hm", ["data.folder=x", override])


def test_tables_that_were_written_anew_make_another_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"data.{name}={tmp_path / name}.parquet" for name in ("items", "clicks")]
    seen = []
    for text in ("one", "another"):
        graph_base._files.cache_clear()
        for name in ("items", "clicks"):
            (tmp_path / f"{name}.parquet").write_text(text)
        loaded = load_recipe("smgr-debug", ["data.source=tables", "data.limit=null", *files])[0]
        seen.append({build_graph(loaded)["catalogue"].key for _ in range(2)})
    assert [len(each) for each in seen] == [1, 1]
    assert seen[0] != seen[1]


def finished(overrides: list[str]) -> str:
    """The folder of a run whose steps have manifests and nothing else."""
    recipe, _, values = load_recipe("smgr-debug", [*overrides, "variants={}"])
    graphs, store = seeded_graphs({recipe.label: recipe}), Store(recipe.runs.root)
    for step in graphs[recipe.label][0].steps.values():
        manifest = {"attempt": "a", "config": dict(step.config), "version": step.version}
        storage.write_json(storage.join(store.root, "steps", step.folder, "manifest.json"), manifest)
    folder = storage.join(store.root, "runs", run_folder_name(values))
    _write_run(folder, values, graphs, store)
    return folder


def test_a_run_continues_steps_as_they_are_whatever_code_and_data_have_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished([f"runs.root={tmp_path}"])
    done = storage.read_json(storage.join(first, "steps.json"))["smgr"]
    monkeypatch.setattr("sidray.graph_towers.STAGE_VERSION", 99)
    own = [f"runs.root={tmp_path}", "stages=[]", "evaluation.after={}"]
    second = finished([*own, f"init_from={first}"])
    third = load_recipe("smgr-debug", [*own, f"init_from={second}"])[0]  # stages: [] twice in a row
    graph = build_graph(third)
    assert graph["pretrained-towers"].folder == done["pretrained-towers"]
    assert graph["tokenizers"].folder == done["tokenizers"]
    assert graph["text-weights"].folder == done["text-weights"]
    assert graph["pretrained"].config["item"] == "fused"
    start = graph["stage-doc2docid"].inputs["start"].folder
    assert start == storage.read_json(storage.join(second, "steps.json"))["smgr"]["final-towers"]


def test_a_run_of_another_store_is_not_continued(tmp_path: Path) -> None:
    first = finished([f"runs.root={tmp_path}"])
    recipe = load_recipe("smgr-debug", [f"runs.root={tmp_path}-2", f"init_from={first}", "stages=[]"])[0]
    with pytest.raises(UserError, match=rf"another store(.|\n)*runs.root={tmp_path}"):
        build_graph(recipe)
    with pytest.raises(UserError, match=r"model\.note"):
        build_graph(load_recipe("notellm2-debug", [f"runs.root={tmp_path}", f"init_from={first}", "stages=[]"])[0])


def test_the_last_stage_has_what_is_served() -> None:
    with pytest.raises(UserError, match=r"stage doc2docid, the last one, needs item: sids"):
        load_recipe("smgr-debug", ["stage_overrides.finetune=null"])


def test_nothing_to_predict_without_sids() -> None:
    with pytest.raises(UserError, match="doc2docid has nothing to predict"):
        load_recipe("smgr-hm", ["data.folder=x", "tokenizer.modalities=[]"])


def test_towers_do_not_learn_from_pairs() -> None:
    with pytest.raises(UserError, match=r"a model without model\.note has query2item"):
        load_recipe("smgr-hm", ["data.folder=x", "stages=[{name: s, tasks: {note2note: 1}}]"])


def test_no_two_stages_draw_alike() -> None:
    """Of one seed; the same stage of two variants does."""
    recipe, variants, _ = load_recipe("reproduce-pictograms", [])
    one, other = (each.with_seeds()[0] for each in (recipe, variants["order1"]))
    draws = {stage.name: stage.draws for stage in (*one.stages, *one.sid_stages)}
    assert len(set(draws.values())) == len(draws) == 6
    assert {stage.name: stage.draws for stage in other.stages} == {s.name: draws[s.name] for s in other.stages}
    again = recipe.with_seeds()[1]
    assert not {stage.draws for stage in (*again.stages, *again.sid_stages)} & set(draws.values())


def test_weights_and_articles_that_were_written_anew_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_base, "_now", iter(range(99)).__next__)  # files are looked at once in 10 s
    (tmp_path / "lm").mkdir()
    (tmp_path / "pairs.parquet").write_bytes(b"1")
    given = [f"data.folder={tmp_path}", f"model.text.weights={tmp_path}/lm"]
    recipe = load_recipe("notellm2-hm", [*given, "model.text.layers=null", "model.text.frozen_layers=0"])[0]

    def keys() -> tuple[str, str]:
        graph = build_graph(recipe)
        return graph["catalogue"].key, graph["text-weights"].key

    first = keys()
    assert keys() == first
    (tmp_path / "pairs.parquet").write_bytes(b"22")
    second = keys()
    (tmp_path / "lm/model.safetensors").write_bytes(b"1")
    third = keys()
    assert first[0] != second[0] == third[0]
    assert first[1] == second[1] != third[1]
