"""Recipes: extends, overrides, and errors that name the dotted path and the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sidray.config import load_yaml, merge, shipped
from sidray.errors import UserError
from sidray.recipe import from_values, load_recipe, run_folder_name


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_and_survives_its_own_dump(name: str) -> None:
    recipe, variants, values = load_recipe(
        name, ["data.folder=x"] if "hm" in load_yaml(name).get("data", {}).get("source", "") else []
    )
    again, variants_again, values_again = from_values(yaml.safe_load(yaml.safe_dump(values)), name)
    assert (again, variants_again, values_again) == (recipe, variants, values)


def test_extends_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: a\ntraining: {workers: 3, clip: 2.0}\nstages: [{name: s, tasks: {causal: 1}}]"
    )
    (tmp_path / "own.yaml").write_text("extends: base.yaml\ntraining: {workers: 4}")
    recipe, _, _ = load_recipe(str(tmp_path / "own.yaml"), ["model.mlp=[8, 4]", "training.zero_stage=2"])
    assert (recipe.training.workers, recipe.training.clip, recipe.training.zero_stage) == (4, 2.0, 2)
    assert recipe.model.mlp == [8, 4]


def test_variants_start_from_another(tmp_path: Path) -> None:
    values = load_yaml("smgr-debug")
    values["variants"] = {
        "a": {"stages": [{"name": "x", "tasks": {"query2item": 1}}]},
        "b": {"like": "a", "model": {"mlp": [4]}},
    }
    _, variants, _ = from_values(values, "test")
    assert variants["b"].stages == variants["a"].stages
    assert variants["b"].model.mlp == [4]
    values["variants"]["a"]["like"] = "b"
    with pytest.raises(UserError, match=r"names another|name another"):
        from_values(values, "test")


def test_stage_overrides_change_the_stage_of_that_name_alone() -> None:
    values = load_yaml("smgr-debug", ["stage_overrides.finetune.tasks.causal=0.5", "stage_overrides.finetune.steps=3"])
    values["variants"] = {
        "own": {"stages": [{"name": "query2item", "tasks": {"query2item": 1}}], "sid_stages": []},
        "longer": {"stage_overrides": {"query2item": {"steps": 9}}},
    }
    recipe, variants, resolved = from_values(values, "test")
    plain, _, _ = load_recipe("smgr-debug", [])
    changed = {s.name: s for s in recipe.sid_stages}["finetune"]
    assert (changed.tasks["causal"], changed.tasks["query2item"], changed.steps) == (0.5, 1.0, 3)
    assert recipe.stages == plain.stages
    assert {s.name: s.steps for s in variants["longer"].stages}["query2item"] == 9
    assert variants["longer"].sid_stages == recipe.sid_stages
    assert from_values(resolved, "test")[:2] == (recipe, variants)
    values["stage_overrides"] = {"query2item": {"steps": 5}}
    _, variants, _ = from_values(values, "test")
    assert variants["own"].stages[0].steps == plain.stages[0].steps  # a list of its own is not touched


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.worker=2", r"training.worker: unknown key \(did you mean 'workers'\?\)"),
        ("model.text.frozen_layer=2", r"model.text.frozen_layer: unknown key \(did you mean 'frozen_layers'\?\)"),
        ("training.workers=two", r"training.workers: .*integer.*\(given: 'two'\)"),
        ("training.workers=0", r"training.workers: .*greater than 0"),
        ("stages=[{name: a, tasks: {query2txt: 1}}]", r"stages.0.tasks.query2txt"),
        ("stages=[]", "at least one entry in stages"),
        ("stages=[{name: a, tasks: {causal_sids: 1}}]", "stage a needs SIDs"),
        ("model.image.pool=stages", r"pool=stages needs an EfficientNet, not weights=random: use pool=last"),
        ("model.image.weights=none", "stage image2text needs pictures"),
        ("data.source=picograms", r"data.source: .*'pictograms'"),
        ("nonsense", "not of the form"),
        (
            "stage_overrides.finetuning.steps=3",
            r"stage_overrides.finetuning names no stage \(did you mean 'finetune'\?\)",
        ),
        ("stage_overrides=[1]", "must map stage names to values"),
        ("stage_defaults=3", "stage_defaults must map keys to values"),
        ("variants={a: 3}", "variants must map names to values"),
        ("variants={w/o pictures: {}}", "'w/o pictures' cannot be a label or the name of a variant"),
        ("variants={BM25: {}}", "'BM25' cannot be a label"),
        ("variants={smgr: {}}", "a variant has the recipe's own label"),
        ("label=a/b", "'a/b' cannot be a label"),
        ('label="abc', "the value is not YAML"),
        ("runs.root=@x", "the value is not YAML"),
        ("seeds=[-1]", "seeds.0: .*greater than or equal to 0"),
        ("tokenizer.hidden={itme: [8]}", "tokenizer.hidden.itme"),
        ("stage_overrides.finetune.step=3", r"sid_stages.1.step: unknown key \(did you mean 'steps'\?\)"),
    ],
)
def test_bad_keys_name_their_place(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("smgr-debug", [override])


@pytest.mark.parametrize("value", ["3", "[3]", "{a: b}"])
def test_extends_names_recipes(tmp_path: Path, value: str) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: {value}\nname: own\n")
    with pytest.raises(UserError, match="extends holds"):
        load_recipe(str(tmp_path / "own.yaml"), [])


def test_empty_sections_are_those_that_are_not_there(tmp_path: Path) -> None:
    text = "name: own\nextends:\nstage_defaults:\nvariants:\nstages: [{name: a, tasks: {query2item: 1}}]\n"
    (tmp_path / "own.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "own.yaml"), [])[1] == {}


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'smgr-debug'"):
        load_recipe("smgr-debg", [])
    with pytest.raises(UserError, match="does not exist"):
        load_recipe("no/such/file.yaml", [])


def test_a_recipe_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1,\nb")
    with pytest.raises(UserError, match="not YAML"):
        load_recipe(str(path), [])
    path.write_text("- 1")
    with pytest.raises(UserError, match="holds a list"):
        load_recipe(str(path), [])
    path.write_text(f"extends: {path.name}")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(path), [])


def test_a_recipe_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes("extends: smgr-debug\nlabel: größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"own\.yaml is not UTF-8: .*position"):
        load_yaml(str(path))
    path.write_text("extends: smgr-debug\nlabel: größer\n", "utf-8")
    assert load_yaml(str(path))["label"] == "größer"


def test_null_takes_a_task_or_a_stage_out() -> None:
    given = ["stage_overrides.doc2docid=null", "stage_overrides.finetune.tasks={causal: null, query2item: 2}"]
    recipe = load_recipe("smgr-debug", given)[0]
    assert [stage.name for stage in recipe.sid_stages] == ["finetune"]
    assert recipe.sid_stages[0].tasks == {"causal_sids": 1, "query2item": 2, "query2item_hard": 1}
    with pytest.raises(UserError, match=r"stage_overrides\.doc2docit names no stage.*doc2docid"):
        load_recipe("smgr-debug", ["stage_overrides.doc2docit=null"])


def test_merge_replaces_lists_and_merges_mappings() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


def test_the_run_folder_depends_on_every_value() -> None:
    _, _, one = load_recipe("smgr-debug", [])
    _, _, two = load_recipe("smgr-debug", ["training.clip=0.5"])
    assert run_folder_name(one) != run_folder_name(two)
    assert run_folder_name(one) == run_folder_name(load_recipe("smgr-debug", [])[2])
