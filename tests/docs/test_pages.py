"""Every link, every recipe and every piece of Python of every page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sidray.recipe import from_values, load_recipe
from tests.docs.pages import PAGES, ROOT, Block, anchors, blocks, links

EXAMPLES = ROOT / "docs" / "examples"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PYTHON_RUN_BY = {  # a page with Python -> the test that runs it; what stands in docs/examples is run from there
    "README.md": "tests/docs/test_own_data.py",
    "docs/serving-api.md": "tests/serving/test_pages.py",
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}; there are {sorted(anchors(target))}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), {ROOT / "README.md"}
    while todo:
        page = todo.pop()
        reached.add(page)
        linked = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link}
        todo |= {each for each in linked if each.suffix == ".md"} - reached
    assert reached >= set(PAGES)


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page) if link.endswith(".png")}
    assert shown == set((ROOT / "docs").glob("*.png"))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_recipes_load(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.text)
    if "extends" not in values:  # Prometheus' own, of the page on observability
        assert block.page.parent.name == "observability"
        return
    path = tmp_path / "shown.yaml"
    path.write_text(block.text)
    recipe, variants, resolved = load_recipe(str(path), [])
    assert recipe.name == values["name"]
    assert set(values.get("variants", {})) <= set(variants)
    assert from_values(resolved, "again")[0] == recipe


def test_every_shipped_recipe_and_part_is_listed() -> None:
    folder = ROOT / "platform" / "sidray" / "recipes"
    names = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_benchmark_is_listed() -> None:
    scripts = {path.name for path in (ROOT / "jobs" / "bench").glob("*.py") if "__main__" in path.read_text()}
    text = (ROOT / "docs" / "results.md").read_text()
    assert {name for name in scripts if f"python jobs/bench/{name} " not in text} == set()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_what_stands_in_examples_is_shown_and_short(path: Path) -> None:
    page = (ROOT / "docs" / "adding-a-system.md").read_text()
    text = path.read_text()
    assert f"(examples/{path.name})" in page
    assert len(text.splitlines()) < 60
    shown = [block for block in blocks("python") + blocks("yaml") if block.text in text]
    assert len(shown) == 1, f"{path.name} is not what its page shows"


def test_the_readme_counts_the_lines_of_the_task() -> None:
    lines = len((EXAMPLES / "hidden_pictures.py").read_text().splitlines())
    assert f"a new training task in {lines} lines" in (ROOT / "README.md").read_text()
    assert f"examples/hidden_pictures.py), {lines} lines" in (ROOT / "docs" / "adding-a-system.md").read_text()


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_is_run(block: Block) -> None:
    if not any(block.text in path.read_text() for path in EXAMPLES.glob("*.py")):
        assert (ROOT / PYTHON_RUN_BY[str(block.page.relative_to(ROOT))]).is_file()


def test_the_readme_is_short_and_its_example_has_few_lines() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 120
    (example,) = blocks("python", readme)
    assert len([line for line in example.text.splitlines() if line.strip() and line[0] != "#"]) <= 15


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_lines_are_wrapped_and_fences_closed(page: Path) -> None:
    text = page.read_text()
    assert text.count("\n```") % 2 == 0
    head = text.partition("<!-- Below")[0].splitlines()
    assert [line for line in head if len(line) > 150 and line[0] not in "|!"] == []
