"""Configuration: YAML with `extends:`, dotted overrides (a.b=c), checked into pydantic models.

    values = load_yaml("smgr-debug", ["training.workers=2"]);  recipe = build(Recipe, values, "recipe smgr-debug")

An unknown key or a bad value raises UserError with its dotted path and the nearest known key.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidray.errors import UserError, nearest


class Settings(BaseModel):
    """Base of every section of a recipe: immutable, and no unknown key passes. The string below a key explains it, also
    in docs/recipes.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def later(default: Any) -> Any:
    """A field that its section got later: at its default it is left out of what is dumped, so that the keys of steps
    that were made before it stay."""
    return Field(default, exclude_if=lambda value: value == default)


M = TypeVar("M", bound=Settings)
Values = dict[str, Any]


def shipped() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("sidray") / "recipes"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def merge(base: Values, over: Values) -> Values:
    """`over` on top of `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_maps else value
    return merged


def _resource(name: str) -> Any:
    """The file of a shipped recipe, or of a part that recipes extend ("sizes/demo")."""
    return resources.files("sidray").joinpath("recipes", *f"{name}.yaml".split("/"))


def _read(name: str) -> tuple[Values, Path | None]:
    """The mapping in a YAML file (a path ends in .yaml or .yml) or in a shipped recipe, and the file's folder."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe file {name} does not exist", "give a YAML file or the name of a shipped recipe")
        text, folder = _text(path), path.parent
    else:
        if name not in shipped() and not _resource(name).is_file():
            raise UserError(
                f"no recipe is called {name!r}{nearest(name, shipped())}", f"shipped: {', '.join(shipped())}"
            )
        text, folder = _resource(name).read_text(), None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is not YAML: {error}", "mend the line it names") from error
    if not isinstance(values, dict):
        raise UserError(f"recipe {name} holds a {type(values).__name__}", "it must be a mapping of keys to values")
    return values, folder


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"recipe file {path} is not UTF-8: {error}", "save it as UTF-8") from error


def load_yaml(name: str, overrides: Iterable[str] = (), _seen: tuple[str, ...] = ()) -> Values:
    """The recipe's values with its `extends` chain resolved (a name or a list, later wins) and overrides applied."""
    if name in _seen:
        raise UserError(f"recipe {name} extends itself: {' -> '.join((*_seen, name))}", "break the circle")
    values, folder = _read(name)
    parents = values.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"recipe {name}: extends holds {parents!r}", "give a recipe's name or a list of them")
    merged: Values = {}
    for parent in parents:
        near = folder / parent if folder and parent.endswith((".yaml", ".yml")) else parent
        merged = merge(merged, load_yaml(str(near), (), (*_seen, name)))
    merged = merge(merged, values)
    return overridden(merged, overrides)


def overridden(values: Values, overrides: Iterable[str]) -> Values:
    """With dotted overrides a.b=c applied. UserError for one that is none."""
    for override in overrides:
        values = merge(values, _parse_override(override))
    return values


def _parse_override(text: str) -> Values:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"override {text!r} is not of the form a.b=value", "for example training.workers=2")
    try:
        nested: Any = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not YAML", "put it in quotes, within the shell's") from error
    for key in reversed(path.strip().split(".")):
        nested = {key: nested}
    return dict(nested)


def build(model: type[M], values: Values, origin: str) -> M:
    """Checks `values` into `model`; `origin` says in the error what they are of.

    Raises UserError that lists every bad key with its dotted path."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise UserError(f"{origin}:\n  " + "\n  ".join(lines), "mend these keys") from error


def _explain(model: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key{nearest(str(item['loc'][-1]), _keys_at(model, item['loc'][:-1]))}"
    given = "" if item["type"] == "missing" else f" (given: {item['input']!r:.80})"
    return f"{path}: {item['msg']}{given}"


def _keys_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that the section at `loc` knows; [] when it cannot be told."""
    models = [model]
    for part in loc:
        following: list[Any] = []
        for current in models:
            field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
            following += _models_in(field.annotation) if field else []
        models = following or models  # list indices and union tags name no field: stay
    return [key for current in models if hasattr(current, "model_fields") for key in current.model_fields]


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in get_args(annotation) for found in _models_in(arg)]
