"""The reference of every key of a recipe, from the models that check recipes, as Markdown.

PYTHONPATH=platform python -m docs.recipe_reference    # writes the end of docs/recipes.md; `make docs` does it
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.generated import with_end
from sidray.recipe import Recipe

PAGE = Path(__file__).parent / "recipes.md"
NAMES = {str: "text", int: "integer", float: "number", bool: "`true`, `false`", types.NoneType: "`null`", Any: "any"}


def reference() -> str:
    """A heading and a table for each section: key, values, default, meaning."""
    return "\n".join(_section(path, model) for path, model in sections(Recipe))


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and all below it, each once, with their dotted paths; an entry of a list is `path[]`."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner, is_list in _models(field.annotation):
            if name != "sid_stages":  # as stages
                yield from sections(inner, f"{path}{'.' if path else ''}{name}{'[]' if is_list else ''}")


def _section(path: str, model: type[BaseModel]) -> str:
    rows = [_row(name, field) for name, field in model.model_fields.items() if not _explains_itself(field)]
    head = [f"### {f'`{path}`' if path else 'A recipe'}", _line(model.__doc__), ""]
    return "\n".join([*head, "| key | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _explains_itself(field: FieldInfo) -> bool:
    """Whether the key is a section with a heading of its own and no more to say."""
    return field.description is None and bool(list(_models(field.annotation)))


def _row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
    cells = [f"`{name}`", _values(field.annotation, field.metadata), default, _line(field.description)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(kind: Any, metadata: list[Any]) -> str:
    """What may stand there, with its bounds."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words = [_type(part) for part in parts if part is not types.NoneType]
    words = [
        " ".join(
            [", ".join(words) if all(word[0] == "`" for word in words) else " or ".join(words), *_limits(metadata)]
        )
    ]
    return " or ".join([*words, "`null`"] if types.NoneType in parts else words)


def _type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__metadata__"):  # Annotated: bounds stand alone, or in a Field
        return _values(arguments[0], [each for one in arguments[1:] for each in getattr(one, "metadata", [one])])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin is dict:
        return f"{{{_values(arguments[0], [])}: {_values(arguments[1], [])}}}"
    if origin in (list, tuple):
        return f"list of {_values(arguments[0], [])}".replace("of section", "of sections")
    return "section" if isinstance(kind, type) and issubclass(kind, BaseModel) else NAMES[kind]


def _limits(metadata: list[Any]) -> list[str]:
    found = []
    for each in metadata:
        for kind, name, sign in (
            (bounds.Gt, "gt", ">"),
            (bounds.Ge, "ge", ">="),
            (bounds.Lt, "lt", "<"),
            (bounds.Le, "le", "<="),
        ):
            if isinstance(each, kind):
                found.append(f"{sign} {getattr(each, name):g}")
        if isinstance(each, bounds.MinLen):
            found.append("(not empty)")
        if pattern := getattr(each, "pattern", None):
            found.append(f"`{pattern}`")
    return found


def _models(kind: Any, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind, is_list
    for argument in get_args(kind):
        yield from _models(argument, is_list or get_origin(kind) is list)


def _yaml(value: Any) -> str:
    """A value as one writes it in a recipe."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.write_text(with_end(PAGE.read_text(), reference()))
