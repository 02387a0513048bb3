"""What is in a wheel of this package, built as pip builds it: the types, the recipes, the search page, all modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


def test_every_file_of_the_package_is_there_and_nothing_else(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "platform", tmp_path / "platform", ignore=LEFT_OUT)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for path in (ROOT / "platform").rglob("*") if path.is_file()]
    own = {str(path.relative_to(ROOT / "platform")) for path in files if "egg-info" not in str(path)}
    wanted = {name for name in own if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"sidray/recipes/sizes/demo.yaml", "sidray/serving/web/index.html", "sidray/py.typed"} <= wanted
