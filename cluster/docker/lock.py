"""Writes requirements-cpu.lock or requirements-cuda.lock: every package of an image, its version and the hashes of its
files for Linux on x86-64 with Python 3.11. From the root of the repository, with uv installed:

python cluster/docker/lock.py cpu --torch-backend cpu
python cluster/docker/lock.py cuda --constraint tested.txt      # what follows the name goes to `uv pip compile`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXTRAS = {"cpu": ("cpu", "demo"), "cuda": ("gpu", "demo")}
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"


def resolve(name: str, options: list[str]) -> list[dict[str, Any]]:
    """The packages that pyproject.toml asks for, and theirs, with the files that fit the image."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pylock.toml"
        extras = [f"--extra={extra}" for extra in EXTRAS[name]]
        target = ["--python-version", PYTHON, "--python-platform", PLATFORM, "--format", "pylock.toml", "-o", str(out)]
        command = ["uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", *extras, *target, *options]
        subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.DEVNULL)
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text())["packages"]
    return packages


def line(package: dict[str, Any]) -> str:
    """As pip takes it: the wheels' hashes, the source's where there is no wheel. torch of the CPU is in cpu.Dockerfile:
    its file is in an index of its own."""
    version = str(package["version"])
    if "+" in version:
        return f"# {package['name']}=={version}: see cpu.Dockerfile"
    files = package.get("wheels") or [package["sdist"]]
    hashes = sorted({f"--hash=sha256:{file['hashes']['sha256']}" for file in files})
    return " \\\n    ".join([f"{package['name']}=={version}", *hashes])


def main(name: str, options: list[str]) -> None:
    head = f"# Written by cluster/docker/lock.py {name}. Linux on x86-64, Python {PYTHON}."
    lines = [line(package) for package in sorted(resolve(name, options), key=lambda each: str(each["name"]))]
    (HERE / f"requirements-{name}.lock").write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
