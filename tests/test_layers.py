"""The direction of imports: a module knows its own part and the layers below it, never one above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sidray

ROOT = Path(sidray.__file__).parent
# From the ground up. "settings": the modules of that name in every part, which are light and which a recipe is made of.
LAYERS = (
    {"errors", "failures", "config", "scratch", "storage", "datasets", "lease", "steps", "progress", "metrics"},
    {"settings"},
    {"recipe", "finished", "cluster", "command"},
    {"data"},
    {"models", "tokenizers", "embedding", "retrieval", "evaluation"},
    {"tasks"},
    {"training"},
    {"graph_base", "graph_notes", "graph_towers", "graph_evaluation", "graph"},
    {"report_files", "report_clicks", "report_pairs"},
    {"run", "batch_embed", "export", "search", "show", "submit"},
    {"serving"},
    {"client"},
    {"jobs", "cli", "__main__"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """`sidray.training.settings` -> settings; `sidray.training.worker` -> training."""
    names = module.split(".")
    return "settings" if names[-1].endswith("settings") else names[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of the package that run when this one does: not those under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "sidray":
            yield from (f"sidray.{each.name}" for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sidray."):
            yield from (f"{node.module}.{each.name}" for each in node.names if (_path(f"{node.module}.{each.name}")))
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.startswith("sidray."))
        yield from imports(node)


def _path(module: str) -> Path | None:
    path = ROOT.parent / Path(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def test_no_module_knows_a_layer_above_it() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        if module == "sidray.__init__":
            continue
        own = part_of(module)
        for found in set(imports(ast.parse(path.read_text()))):
            if LEVEL[part_of(found)] > LEVEL[own]:
                wrong.append(f"{module} imports {found}")
    assert wrong == []


def test_index_and_embedding_do_not_know_each_other_both() -> None:
    """Items are embedded, then indexed."""
    for path in (ROOT / "embedding").glob("*.py"):
        assert not [each for each in imports(ast.parse(path.read_text())) if part_of(each) == "retrieval"], path.name


def test_every_part_has_a_layer() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__", "recipes"} == set(LEVEL) - {"settings", "__main__"}
