"""Recall side by side: jobs/bench/recall.py at a size of minutes, in an environment that has its rivals and sidray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .arms import Figures, NotRunError, run
from .setting import Setting
from .table import Figure, Row, compare

SCRIPT = Path(__file__).parent.parent / "recall.py"
SIZES = ["--items", "200000", "--subset", "50000", "--partitions", "500", "--queries", "1200"]
FIGURES = [
    Figure("QPS", "queries/s"),
    Figure("p99 ms", "p99 ms", True),
    Figure("recall@10", "recall@10"),
]


def rows(setting: Setting) -> list[Row]:
    try:
        python = setting.venvs.beside_ours("recall")
        line = run([python, SCRIPT, *SIZES, "--folder", setting.work], threads=1)
    except NotRunError as reason:
        return [Row("recall", FIGURES[0].name, "", None, None, note=f"not run: {reason}")]
    return [row for part in ("all", "subset") for row in _rows(line[part])]


def _rows(line: Figures) -> Iterator[Row]:
    """Of one size: `line` has the figures of ours and of each rival by name, or an error."""
    found = {name: figures for name, figures in line.items() if isinstance(figures, dict)}
    arms: dict[str, list[Figures] | NotRunError] = {
        name: NotRunError(figures["error"]) if "error" in figures else [figures] for name, figures in found.items()
    }
    figures = [Figure(each.key, f"{each.name}, {line['items']:,} items", each.less_is_better) for each in FIGURES]
    yield from compare("recall", figures, arms)
