"""The scripts that `ray job submit` runs: their command lines, and which steps each computes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from sidray import jobs, storage
from sidray.errors import UserError
from sidray.graph import build_graph
from sidray.graph_base import Graph
from sidray.recipe import Recipe, load_recipe
from sidray.steps import Step, Store, Summary, Work

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["prepare", "pretrain", "tokenize", "finetune", "embed", "index", "evaluate", "pipeline"]
WITH_ROLES = NAMES[:6]


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    """The script as a user runs it: by its path, so that Python puts jobs/ first on the module path."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def job(name: str) -> ModuleType:
    return importlib.import_module(f"jobs.{name}")


def test_there_are_no_other_jobs() -> None:
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py")) == sorted([*NAMES, "__init__"])


def test_every_job_has_help() -> None:
    for name, process in [(name, start(name, "--help")) for name in NAMES]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert (job(name).__doc__ or "").splitlines()[0] in out
        assert f"python jobs/{name}.py" in out
        assert "recipe" in out


def test_an_unknown_recipe_ends_with_exit_code_2_and_no_traceback() -> None:
    out, err = (process := start("prepare", "smgr-debgu")).communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: no recipe is called 'smgr-debgu' (did you mean 'smgr-debug'?)\n  remedy: shipped: ")
    assert "Traceback" not in out + err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, overrides: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["job", "smgr-debug"])
    with pytest.raises(ZeroDivisionError):
        jobs.main("A job.", broken)


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_job_does_nothing(name: str) -> None:
    path = list(sys.path)
    module = job(name)
    assert sys.path == path
    public = {key for key in vars(module) if not key.startswith("_")}
    assert public == ({"ROLES"} if name in WITH_ROLES else set())


@pytest.mark.parametrize("name", WITH_ROLES)
def test_the_roles_of_each_job_are_in_the_graphs(name: str) -> None:
    """Of the recipes that have caches too; a job for pretraining or before it is one for NoteLLM-2, too."""
    roles: dict[str, set[str]] = {}
    for recipe in ("smgr-hm", "notellm2-hm"):
        loaded, variants, _ = load_recipe(recipe, ["data.folder=x"])
        roles[recipe] = {role for each in (loaded, *variants.values()) for role in build_graph(each).steps}
    assert set(job(name).ROLES) <= roles["smgr-hm"] | roles["notellm2-hm"]
    assert bool(set(job(name).ROLES) & roles["notellm2-hm"]) == (name not in ("tokenize", "finetune"))


def test_preparing_fills_every_cache() -> None:
    for recipe in ("smgr-hm", "notellm2-hm"):
        loaded, variants, _ = load_recipe(recipe, ["data.folder=x"])
        roles = {role for each in (loaded, *variants.values()) for role in build_graph(each).steps}
        assert {role for role in roles if "-cache" in role} <= set(job("prepare").ROLES)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs of two steps whose work is to note their names; Ray is counted, not started."""
    noted: list[str] = []

    def step(name: str, config: object, **inputs: Step) -> Step:
        def run(work: Work) -> Summary:
            noted.append(name)
            storage.write_json(work.path("out.json"), {})
            return {}

        return Step(name, run, {"config": config}, 1, inputs)

    def graph(recipe: Recipe) -> Graph:
        catalogue = step("catalogue", recipe.data.seed)
        return Graph(recipe, {"catalogue": catalogue, "embed": step("embed", recipe.label, catalogue=catalogue)})

    @contextmanager
    def ray() -> Iterator[None]:
        noted.append("ray")
        yield

    monkeypatch.setattr("sidray.graph.build_graph", graph)
    monkeypatch.setattr(jobs, "ray_cluster", ray)
    return noted


RECIPE = """
name: two
stages: [{name: one, tasks: {query2item: 1}}]
variants: {same: {}, other: {label: other}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[str, list[str]]:
    (tmp_path / "two.yaml").write_text(RECIPE)
    return str(tmp_path / "two.yaml"), [f"runs.root={tmp_path / 'store'}"]


def test_a_job_computes_each_step_of_all_variants_once(
    computed: list[str], recipe: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.compute(["catalogue"])(*recipe)
    assert computed == ["ray", "catalogue"]
    computed.clear()
    jobs.compute(["embed"])(*recipe)
    assert computed == ["ray", "embed", "embed"]  # "same" is the recipe itself, "other" is not
    printed = capsys.readouterr().out
    assert printed.count("/steps/embed-") == 2
    computed.clear()
    jobs.compute(["catalogue", "embed", "sids"])(*recipe)
    assert computed == []  # all is done: not even Ray
    store = Store(recipe[1][0].partition("=")[2], say=lambda line: None)
    assert len(storage.list_names(storage.join(store.root, "steps"))) == 3


def test_a_role_that_the_recipe_lacks_is_refused(computed: list[str], recipe: tuple[str, list[str]]) -> None:
    with pytest.raises(UserError, match="has no sids"):
        jobs.compute(["sids"])(*recipe)
    assert computed == []
