"""Tasks of a user's own: a recipe names one as `module:Class`; the module is installed, or lies where the command is
given.

kind = own_task("hidden_pictures:Query2ItemHidden")
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from sidray.errors import UserError
from sidray.tasks.base import Task


def own_task(name: str) -> type[Task[Any]]:
    """The class. UserError when the module or the class is not there, and when it is no task."""
    module, class_name = name.split(":")
    kind = getattr(_module(module, name), class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError(f"task {name}: {module} has no task {class_name}", "derive it from Task or Contrastive")
    return kind


def own_versions(names: Iterable[str]) -> dict[str, int]:
    """Of tasks of a user's own: part of the key of the stage that they train."""
    return {name: own_task(name).version for name in names}


def own_modules(names: Iterable[str]) -> list[Path]:
    """What a job on a cluster has to bring for them: the top file or folder of each module that is not installed."""
    found = set()
    for name in names:
        top = _module(name.split(":")[0].split(".")[0], name)
        place = Path(top.__file__ or next(iter(top.__path__)))
        found.add(place.parent if place.name == "__init__.py" else place)
    installed = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    return sorted(place for place in found if not installed & {*place.parents})


def _module(name: str, task: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides nothing that is installed
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that theirs wants
        remedy = "install it on every machine, or give the command in its folder"
        raise UserError(f"task {task}: there is no module {error.name}", remedy) from error
