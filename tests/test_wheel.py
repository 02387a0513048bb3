"""What is in a wheel of this package, built as pip builds it: the types, the recipes, the search page, all modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "platform", folder / "platform", ignore=LEFT_OUT)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_type_information_ships(names: set[str]) -> None:
    """PEP 561: with this file type checkers read the package's annotations."""
    assert "sidray/py.typed" in names


def test_every_file_of_the_package_is_there_and_nothing_else(names: set[str]) -> None:
    files = [path for path in (ROOT / "platform").rglob("*") if path.is_file()]
    own = {str(path.relative_to(ROOT / "platform")) for path in files if "egg-info" not in str(path)}
    wanted = {name for name in own if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"sidray/recipes/sizes/demo.yaml", "sidray/serving/web/index.html"} <= wanted
