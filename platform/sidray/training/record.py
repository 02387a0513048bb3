"""What a stage notes of its training: a row for each step and each validation, and rates over them.

    record = Record("finetune", batch_size=64);  record.stepped(metrics, seconds=.2, waited=.01)
    record.write(folder);  Record.read(folder)       # stage.json, metrics.jsonl: a line for each step and validation

Both files are in every checkpoint, too, so that a stage which is resumed has one record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from sidray import storage

SUMMARY = "stage.json"
LINES = "metrics.jsonl"
RECENT = 20  # steps that a rate is taken over

Row = dict[str, float]


@dataclass
class Record:
    """`steps`: step, loss, metrics of the tasks, lr, seconds (waiting included, the start-up not) and of these those
    waited for data. `validation`: step, score, held-out metrics."""

    stage: str
    batch_size: int
    wall_s: float = 0.0
    steps: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many are done."""
        return len(self.steps)

    def stepped(self, metrics: Mapping[str, float], seconds: float, waited: float) -> None:
        self.steps.append({"step": self.step + 1, **metrics, "seconds": seconds, "waited": waited})

    def validated(self, score: float, metrics: Mapping[str, float]) -> bool:
        """Whether this score is the best so far."""
        better = all(score > row["score"] for row in self.validation)
        self.validation.append({"step": self.step, "score": score, **metrics})
        return better

    def rates(self, last: int = 0) -> tuple[float, float]:
        """Samples/s and the share of time that data was waited for, of the `last` steps (0: of all)."""
        rows = self.steps[-last:]
        seconds = max(sum(row["seconds"] for row in rows), 1e-9)
        return self.batch_size * len(rows) / seconds, sum(row["waited"] for row in rows) / seconds

    def told(self) -> str:
        """How it goes, for a bar."""
        rate, waited = self.rates(RECENT)
        return f"{rate:.0f} samples/s, data wait {100 * waited:.0f} %, loss {self.steps[-1]['loss']:.3f}"

    def write_lines(self, folder: str) -> None:
        """metrics.jsonl: a validation's line has the key "validation"."""
        lines: list[tuple[float, Row | dict[str, Row]]] = [(row["step"], row) for row in self.steps]
        lines += [(row["step"], {"validation": row}) for row in self.validation]
        lines.sort(key=lambda line: line[0])  # stable: a step before its validation
        text = "".join(json.dumps(line) + "\n" for _, line in lines)
        storage.write_bytes(storage.join(folder, LINES), text.encode())

    def write(self, folder: str) -> None:
        """Both files; stage.json last."""
        self.write_lines(folder)
        summary = {key: value for key, value in asdict(self).items() if key not in ("steps", "validation")}
        storage.write_json(storage.join(folder, SUMMARY), summary)

    @classmethod
    def read(cls, folder: str) -> Record:
        lines = [json.loads(line) for line in storage.read_bytes(storage.join(folder, LINES)).splitlines()]
        return cls(
            **storage.read_json(storage.join(folder, SUMMARY)),
            steps=[line for line in lines if "validation" not in line],
            validation=[line["validation"] for line in lines if "validation" in line],
        )
