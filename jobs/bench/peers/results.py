"""What is stored of the comparisons: each part with its machine, versions, commit and seconds, and the table of all.

results = Results(folder);  results.add("training", Part.of(rows, seconds));  print(results.table(["training"]))
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .machine import commit, machine, versions
from .table import Row, markdown
from .venvs import pins

LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "faiss-cpu")


@dataclass(frozen=True)
class Part:
    """One comparison as it ran. `load`: of the machine when it ended, by os.getloadavg."""

    rows: list[dict[str, Any]]
    seconds: float
    ended: str
    commit: str
    machine: str
    load: float
    versions: dict[str, Any]

    @classmethod
    def of(cls, rows: Sequence[Row], seconds: float) -> Part:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        installed = {**versions(LIBRARIES), "peers": pins()}
        load = round(os.getloadavg()[0], 1)
        return cls([row.as_json() for row in rows], round(seconds, 1), now, commit(), machine(), load, installed)


@dataclass(frozen=True)
class Results:
    """results.json and table.md in `folder`."""

    folder: Path

    def add(self, name: str, part: Part) -> None:
        """Takes the place of the part of this name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({**self.parts(), name: asdict(part)}, indent=1) + "\n")

    def parts(self) -> dict[str, dict[str, Any]]:
        return dict(json.loads(self._file.read_text())) if self._file.exists() else {}

    def table(self, order: Sequence[str]) -> str:
        """Of all stored parts in this order; written to table.md, too."""
        parts = self.parts()
        stored = [name for name in order if name in parts]
        text = markdown([Row.of_json(row) for name in stored for row in parts[name]["rows"]])
        lines = [f"- {name}: {_told(parts[name])}" for name in stored]
        text = f"A ratio above 1 says that sidray is ahead.\n\n{text}\n" + "\n".join(lines) + "\n"
        (self.folder / "table.md").write_text(text)
        return text

    @property
    def _file(self) -> Path:
        return self.folder / "results.json"


def _told(part: dict[str, Any]) -> str:
    return f"{part['machine']}, load {part['load']}, {part['ended']}, commit {part['commit']}, {part['seconds']:.0f} s"
