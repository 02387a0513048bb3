"""What a measurement was made with: machine, versions of packages, commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = ("platform", "jobs/bench/*.py", "jobs/bench/peers")


def machine() -> str:
    """Processor, cores, memory and GPUs."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return ", ".join([_processor(), f"{os.cpu_count()} cores", f"{memory:.0f} GiB", *gpus])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of the code, with a + where it differs from it; "unknown" outside a repository."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + "+" * bool(changed)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
