"""What all comparisons are given: the peers' environments, a folder to work in, how often each arm runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .venvs import Venvs

SCRIPTS = Path(__file__).parent / "scripts"
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Setting:
    venvs: Venvs
    work: Path
    rounds: int
