"""Rows of the comparison and the table that they make. A ratio above 1 always says that sidray is ahead.

print(markdown([Row("training", "samples/s, 1 worker", "sentence-transformers", 210.0, 190.0)]))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .arms import Figures, NotRunError, mean

OURS = "sidray"
HEAD = ("", "peer", "sidray", "peer's", "ratio", "")


@dataclass(frozen=True)
class Row:
    """One figure of one peer beside ours; None = not run, then `note` says why."""

    part: str
    figure: str
    peer: str
    ours: float | None
    theirs: float | None
    less_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as good ours is."""
        if self.ours is None or self.theirs is None or not self.ours or not self.theirs:
            return None
        return self.theirs / self.ours if self.less_is_better else self.ours / self.theirs

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Row:
        return cls(**{name: value for name, value in values.items() if name != "ratio"})


@dataclass(frozen=True)
class Figure:
    """`key`: of an arm's figures. `causes`: of each peer, why we are behind, where we are."""

    key: str
    name: str
    less_is_better: bool = False
    causes: Mapping[str, str] | None = None


def compare(part: str, figures: Sequence[Figure], found: Mapping[str, list[Figures] | NotRunError]) -> list[Row]:
    """A row for each figure of each peer; a peer that did not run has one row that says why."""
    own = found[OURS]
    own_figures = None if isinstance(own, NotRunError) else mean(own)
    rows: list[Row] = []
    for peer, theirs in found.items():
        if peer == OURS:
            continue
        if isinstance(theirs, NotRunError):
            rows.append(Row(part, figures[0].name, peer, _of(own_figures, figures[0]), None, note=f"not run: {theirs}"))
            continue
        rows += [_row(part, figure, peer, own_figures, mean(theirs)) for figure in figures]
    if isinstance(own, NotRunError):
        rows = [replace(row, note=f"sidray not run: {own}") for row in rows]
    return rows


def _row(part: str, figure: Figure, peer: str, ours: Figures | None, theirs: Figures) -> Row:
    row = Row(part, figure.name, peer, _of(ours, figure), _of(theirs, figure), figure.less_is_better)
    behind = row.ratio is not None and row.ratio < 1
    note = (figure.causes or {}).get(peer, "") if behind else ""
    return replace(row, note=f"behind: {note}" if note else "behind" if behind else "")


def _of(figures: Figures | None, figure: Figure) -> float | None:
    return None if figures is None or figures.get(figure.key) is None else float(figures[figure.key])


def markdown(rows: Iterable[Row]) -> str:
    """The table, one section for each part."""
    lines: list[str] = []
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            head = [part, *HEAD[1:]]
            lines += ["", f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---|"]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"| {row.figure} | {row.peer} | {_short(row.ours)} | {_short(row.theirs)} | {ratio} | {row.note} |"
        )
    return "\n".join(lines).strip() + "\n"


def _short(value: float | None) -> str:
    """Three digits that matter, without an exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
