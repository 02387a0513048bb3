"""`make check` as a test: lint, format and types of the whole tree. mypy takes a minute from cold: it starts with the
session (conftest.py) and has the cores that other tests leave idle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MYPY

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."]], ids=" ".join)
def test_check(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types(pytestconfig: pytest.Config) -> None:
    process = pytestconfig.stash[MYPY]
    told, _ = process.communicate()
    assert process.returncode == 0, told


def test_platform_is_no_package() -> None:
    """An __init__.py there would shadow the standard library's `platform`."""
    assert not (ROOT / "platform" / "__init__.py").exists()
