"""From `git clone` to the first search: the commands of the README, in a fresh folder, with what pip's cache has."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .arms import NotRunError
from .setting import Setting
from .table import Row

ROOT = Path(__file__).resolve().parents[3]


def rows(setting: Setting) -> list[Row]:
    folder = Path(tempfile.mkdtemp(dir=setting.work))
    clone = folder / "sidray"
    steps = {
        "clone": (["git", "clone", "--quiet", str(ROOT), str(clone)], folder),
        "install": (["make", "--silent", ".venv/.installed-run"], clone),
        "make demo": (["make", "--silent", "demo"], clone),
    }
    try:
        seconds = {name: _seconds(command, where) for name, (command, where) in steps.items()}
        run = next((clone / "sidray-runs/runs").iterdir())
        seconds["search"] = _seconds(
            [str(clone / ".venv/bin/sidray"), "search", str(run), "birthday", "-k", "5"], clone
        )
    except NotRunError as reason:
        return [Row("from git clone to the first search", "s", "", None, None, note=f"not run: {reason}")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    parts = [Row("from git clone to the first search", f"{name}, s", "", each, None) for name, each in seconds.items()]
    return [*parts, Row("from git clone to the first search", "in all, s", "", sum(seconds.values()), None)]


def _seconds(command: list[str], folder: Path) -> float:
    """Of one command, in an environment that knows nothing of this process's Python path."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRunError(f"{' '.join(command[:3])}: {(done.stderr.strip().splitlines() or [''])[-1]}"[:200])
    return time.perf_counter() - started
