"""A task from outside the package: the one of docs/adding-a-system.md, how it is found, what is wrong with others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.graph import build_graph
from sidray.recipe import load_recipe
from sidray.steps import Store
from sidray.submit import submit
from sidray.tasks import make_task
from sidray.tasks.views import Views
from sidray.training.record import Record
from sidray.training.settings import StageSettings
from tests.models.tiny import random_batch, tiny_towers

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TASK = "hidden_pictures:Query2ItemHidden"
OWN = """
from sidray.tasks import Task
class Own(Task):
    name, rows, version = "{name}", "{rows}", {version}
    def columns(self, item_kind): return frozenset({columns})
    def loss(self, views): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The folder of the command, and where its module of tasks goes; each test has a module name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path / f"own_{abs(hash(request.node.name))}.py"


def recipe(task: str, *overrides: str) -> list[str]:
    return [f"stages=[{{name: mine, tasks: {{'{task}': 1}}}}]", "sid_stages=[]", *overrides]


def key(*overrides: str) -> str:
    return build_graph(load_recipe("smgr-debug", list(overrides))[0])["stage-mine"].key


def test_it_is_query2item_but_for_hidden_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    stage = StageSettings(name="s", tasks={TASK: 1})
    task, plain = make_task(TASK, stage), make_task("query2item", stage)
    assert task.columns("fused") == plain.columns("fused")
    towers = tiny_towers(tmp_path)
    batch = random_batch(towers, 12)
    towers.eval()
    assert task.loss(Views(towers, batch, "fused"))[0] == plain.loss(Views(towers, batch, "fused"))[0]
    towers.train()
    torch.manual_seed(3)
    hidden = torch.rand(12, 1) < 0.3
    assert 0 < int(hidden.sum()) < 12
    batch["image.present"] &= ~hidden[:, 0]
    wanted = plain.loss(Views(towers, batch, "fused"))[0]
    batch["image.present"] = torch.arange(12) % 4 != 3
    torch.manual_seed(3)
    torch.testing.assert_close(task.loss(Views(towers, batch, "fused"))[0], wanted)


@pytest.mark.ray
def test_the_example_trains(debug_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last stage alone, on the catalogue and the weights of the debug run. The workers find the module in the
    folder of the command."""
    monkeypatch.chdir(EXAMPLES.parents[1])
    monkeypatch.setattr(sys, "path", [*sys.path])
    stage = yaml.safe_load((EXAMPLES / "hidden_pictures.yaml").read_text())["stages"][-1]
    assert stage["tasks"] == {TASK: 1}
    overrides = recipe(f"docs.examples.{TASK}", "evaluation.after={}")
    graph = build_graph(load_recipe("smgr-debug", overrides)[0])
    record = Record.read(Store(RunFolder.open(debug_run).root, lambda line: None).ensure(graph["stage-mine"]))
    assert record.steps[-1]["query2item_hidden/loss"] < record.steps[0]["query2item_hidden/loss"]
    assert record.validation[-1]["score"] == record.validation[-1]["query2item_hidden/R@10"]


def test_what_the_demo_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    ours = build_graph(load_recipe(str(EXAMPLES / "hidden_pictures.yaml"), [])[0])
    demo = build_graph(load_recipe("smgr-pictograms", [])[0])
    for stage in ("query2text", "image2text", "query2image"):
        assert ours[f"stage-{stage}"].key == demo[f"stage-{stage}"].key
    assert ours["stage-query2item"].key != demo["stage-query2item"].key


class Cluster:
    """Takes jobs, and notes which files travel with them."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def submit_job(self, runtime_env: dict[str, str], **rest: object) -> str:
        folder = Path(runtime_env["working_dir"])
        self.files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return "job"


@pytest.mark.parametrize("package", [False, True])
def test_a_job_brings_its_module(module: Path, package: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    monkeypatch.setattr("sidray.submit.connect", lambda address: cluster)
    name = module.stem
    if package:
        module = module.parent / f"{module.stem}_folder" / "deep" / "own.py"
        name = f"{module.parts[-3]}.deep.own"
        module.parent.mkdir(parents=True)
        (module.parents[1] / "__init__.py").touch()
    module.write_text(OWN.format(name="own", rows="clicks", version=1, columns={"query", "text"}))
    submit("smgr-debug", recipe(f"{name}:Own", "runs.root=s3://shop/runs"), "")
    place = module.relative_to(Path.cwd())
    assert cluster.files == {"recipe.yaml", str(place), *([f"{place.parts[0]}/__init__.py"] if package else [])}
    submit("smgr-debug", ["runs.root=s3://shop/runs"], "")
    assert cluster.files == {"recipe.yaml"}


def test_its_version_is_part_of_the_key(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for number in (1, 1, 2):
        module.write_text(OWN.format(name="own", rows="clicks", version=number, columns={"query", "text"}))
        sys.modules.pop(module.stem, None)
        keys.append(key(*recipe(f"{module.stem}:Own")))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("values", "overrides", "says"),
    [
        ({"columns": {"text", "txt"}}, (), "stage mine: task own reads txt, which is not there"),
        ({"columns": {"item"}}, (), "task own reads item, which is not there"),  # SIDs come later
        ({"columns": {"image"}}, ("model.image.weights=none",), "task own reads image"),
        ({"rows": "items", "columns": {"query"}}, (), "task own reads query"),
        ({"rows": "pairs", "columns": {"note"}}, (), "task own has rows = 'pairs'"),
    ],
)
def test_what_it_cannot_read_is_told_before_anything_runs(
    module: Path, values: dict[str, object], overrides: tuple[str, ...], says: str
) -> None:
    module.write_text(OWN.format(**{"name": "own", "rows": "clicks", "version": 1, **values}))
    with pytest.raises(UserError, match=says):
        key(*recipe(f"{module.stem}:Own", *overrides))


def test_two_tasks_of_one_name(module: Path) -> None:
    module.write_text(OWN.format(name="query2text", rows="clicks", version=1, columns={"text"}))
    both = f"stages=[{{name: mine, tasks: {{'{module.stem}:Own': 1, query2text: 1}}}}]"
    with pytest.raises(UserError, match="two of its tasks have one name"):
        key(both, "sid_stages=[]")


def test_a_module_or_a_class_that_is_not_there(module: Path) -> None:
    load_recipe("smgr-debug", recipe("no_such:Own"))  # whoever searches such a run does not need it
    with pytest.raises(UserError, match=r"task no_such:Own: there is no module no_such\n"):
        key(*recipe("no_such:Own"))
    module.write_text("Own = 3\nimport nothing_like_it\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_like_it"):  # theirs, with its traceback
        key(*recipe(f"{module.stem}:Own"))
    module.write_text("Own = 3\n")
    with pytest.raises(UserError, match=f"{module.stem} has no task Own"):
        key(*recipe(f"{module.stem}:Own"))


def test_a_word_that_is_neither(module: Path) -> None:
    with pytest.raises(UserError, match=r"stages\.0\.tasks\.mine\.Own"):
        load_recipe("smgr-debug", recipe("mine.Own"))
