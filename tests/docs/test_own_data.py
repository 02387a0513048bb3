"""The README's example, as its reader follows it: two tables of their own, a recipe, a run; in debug size."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidray import storage
from sidray.finished import RunFolder
from sidray.run import run_recipe
from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"
SMALL = [
    "stages=[{name: query2item, tasks: {query2item: 1}}]",
    "sid_stages=[]",
    "stage_defaults.steps=3",
    "evaluation.gallery_queries=1",
]


@pytest.mark.ray
def test_tables_recipe_run(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the stages the last one; the recipe's size is `debug` in place of `demo`."""
    monkeypatch.chdir(tmp_path)
    (python,), (recipe,) = blocks("python", README), blocks("yaml", README)
    exec(python.text, {})
    name = recipe.text.splitlines()[0].removeprefix("# ")
    assert "sizes/demo" in recipe.text
    Path(name).write_text(recipe.text.replace("sizes/demo", "sizes/debug"))
    finished = run_recipe(name, SMALL, lambda line: None)
    run = RunFolder.open(finished.folder)
    assert run.manifest("catalogue")["summary"]["items"] == 148
    assert run.manifest("catalogue")["summary"]["quarantined"] == {}
    assert "all clicks" in finished.table
    assert storage.exists(storage.join(finished.folder, "report", "report.md"))
