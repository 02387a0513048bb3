"""The report of pairs in the layout of NoteLLM-2's tables: results.json, report.md and recall.png in one folder.

rows = {"BM25": Row("text", [result]), "NoteLLM-2": Row("multimodal", [seed 42's, seed 43's, seed 44's])}
layouts = {"Table 4: methods": Layout(["basic method", "NoteLLM-2"]), "Table 11: long pairs": Layout([...], LONG)}
comparisons = [Versus("NoteLLM-2", "BM25", ALL_PAIRS, "recall@10", compare_pairs(...)), ...]
text = write_pair_report(rows, layouts, Path("report"), comparisons)
print(pair_table_text(rows, layouts, comparisons))  # the first table's columns of all pairs, for a terminal
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from sidray import storage
from sidray.evaluation.pairs import ALL_PAIRS
from sidray.evaluation.protocol import Result
from sidray.evaluation.report import escaped, markdown_table, plain_table, png
from sidray.evaluation.significance import Comparison

SHORT = (ALL_PAIRS, "short query pairs", "short target pairs")  # tables 2 to 6 and 10
LONG = ("long query pairs", "long target pairs")  # table 11
PLOT = "recall.png"

NOTES = {
    "popularity": "notes by the number of train pairs that lead to them; notes that have none tie: chance among them",
    "BM25": "word match of the query note's text with the target's, whole where prompts are cut; sees no picture",
}
_HOW = (
    "R@K is Recall@K: the share of pairs whose target is among the K notes that are most similar to the query note, of "
    "all other notes of the pool; `of all`: of all other notes that occur in any click or pair. Ties are counted in "
    "expectation over their orders. Values are in %; of several seeds the mean ± their standard deviation. The plot's "
    "intervals are 95 %; pairs with a common note count as dependent."
)
_PAIRED = (
    "Differences in percentage points, each pair's recall averaged over the seeds: a paired test, two-sided, in which "
    "pairs with a common note are dependent. * marks p < 0.05, in the tables only where the row is better."
)


class Row(NamedTuple):
    """One line of the tables. `given`: what the model sees, "text", "image", "multimodal" or "none"; `results`: what
    evaluate_pairs gave, one for each seed."""

    given: str
    results: Sequence[Result]


class Layout(NamedTuple):
    """One table: the labels of its lines, and the rows of the results that stand side by side."""

    labels: Sequence[str]
    pairs: Sequence[str] = SHORT


class Versus(NamedTuple):
    """The test of a line against a baseline, by one metric on one row of the results. A star stands where the line is
    better in all of its tests."""

    label: str
    baseline: str
    pairs: str
    metric: str
    test: Comparison


class _Column(NamedTuple):
    pairs: str
    metric: str

    @property
    def recall_at(self) -> str:
        pool, k = self.metric.split("recall@")
        return f"R@{k} of all" if pool else f"R@{k}"


def write_pair_report(
    rows: Mapping[str, Row],
    layouts: Mapping[str, Layout],
    folder: Path,
    comparisons: Sequence[Versus] = (),
) -> str:
    """Writes the three files and returns the text of report.md.

    rows: label -> line; layouts: title -> table, in order; a label without a line, and a table without lines, is left
    out."""
    known = {label: NOTES[label] for label in rows if label in NOTES}
    text = _markdown(rows, layouts, comparisons, known)
    saved = {
        "rows": {label: row._asdict() for label, row in rows.items()},
        "layouts": {title: layout._asdict() for title, layout in layouts.items()},
        "comparisons": [each._asdict() | {"test": each.test._asdict()} for each in comparisons],
        "notes": known,
    }
    storage.write_json(str(folder / "results.json"), saved)
    storage.write_bytes(str(folder / "report.md"), text.encode())
    storage.write_bytes(str(folder / PLOT), pair_plot(rows))
    return text


def pair_table_text(rows: Mapping[str, Row], layouts: Mapping[str, Layout], comparisons: Sequence[Versus] = ()) -> str:
    """The first table that has lines as plain text, its columns of all pairs alone. Empty when there is none."""
    for title, layout in layouts.items():
        if lines := _table(rows, overall := Layout(layout.labels, [ALL_PAIRS]), comparisons):
            columns = [column.recall_at for column in _columns(rows, overall)]
            return plain_table(f"{title}, {ALL_PAIRS} (%)", ["method", "input", "seeds", *columns], lines, 110)
    return ""


def pair_plot(rows: Mapping[str, Row]) -> bytes:
    """The recall at the smallest K of every line on all, short query and short target pairs, with intervals: a PNG."""
    columns = [column for pairs in SHORT for column in _columns(rows, Layout((), [pairs]))[:1]]
    figure = Figure(figsize=(8.5, min(40.0, 1.6 + 0.26 * len(rows) * max(1, len(columns)))), dpi=120)
    axes = figure.subplots()
    width = 0.84 / max(1, len(columns))
    for number, column in enumerate(columns):
        have = [(place, values) for place, row in enumerate(rows.values()) if len(values := _bounds(row, column))]
        y = [place + (number - (len(columns) - 1) / 2) * width for place, _ in have]
        mean, low, high = np.array([values for _, values in have]).T
        reach = [mean - low, high - mean]
        axes.barh(y, mean, width * 0.92, label=column.pairs, xerr=reach, ecolor="#444", error_kw={"lw": 0.8})
    axes.set_yticks(range(len(rows)), [f"{label} ({row.given})" for label, row in rows.items()])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel(f"{columns[0].recall_at} (%)" if columns else "")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if columns:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return png(figure)


def _markdown(
    rows: Mapping[str, Row], layouts: Mapping[str, Layout], comparisons: Sequence[Versus], notes: Mapping[str, str]
) -> str:
    rules = {name: rule for row in rows.values() for result in row.results for name, rule in result["rules"].items()}
    parts = ["# Evaluation of pairs", _HOW, f"![Recall of every method]({PLOT})"]
    parts.append("\n".join(f"- {escaped(name)}: {escaped(rule)}." for name, rule in rules.items()))
    for title, layout in layouts.items():
        if lines := _table(rows, layout, comparisons):
            columns = [f"{column.pairs}: {column.recall_at}" for column in _columns(rows, layout)]
            parts += [f"## {escaped(title)}", markdown_table(["method", "input", "seeds", *columns], lines)]
    if comparisons:
        columns = ["method", "against", "on", "difference", "95 %", "p"]
        parts += ["## Comparisons", _PAIRED, markdown_table(columns, map(_test_line, comparisons))]
    if notes:
        parts += ["## What the methods are", "\n".join(f"- {escaped(name)}: {escaped(notes[name])}" for name in notes)]
    return "\n\n".join(parts) + "\n"


def _test_line(versus: Versus) -> list[str]:
    difference, low, high = (100 * value for value in versus.test[:3])
    p = f"{versus.test.p:.4f}{'*' if versus.test.significant else ''}"
    column = _Column(versus.pairs, versus.metric)
    bounds = f"{low:+.2f} to {high:+.2f}"
    return [versus.label, versus.baseline, f"{column.pairs}: {column.recall_at}", f"{difference:+.2f}", bounds, p]


def _columns(rows: Mapping[str, Row], layout: Layout) -> list[_Column]:
    """R@K in the pool for every K, and behind those of all pairs the one of the largest K among all notes."""
    results = [result for row in rows.values() for result in row.results]
    columns = []
    for pairs in layout.pairs:
        values = {name: None for result in results for name in result["rows"].get(pairs, {})}
        metrics = [name for name in values if f"{name}_low" in values]
        columns += [_Column(pairs, name) for name in metrics if name.startswith("recall@")]
        if pairs == ALL_PAIRS:
            columns += [_Column(pairs, name) for name in metrics if not name.startswith("recall@")][-1:]
    return columns


def _table(rows: Mapping[str, Row], layout: Layout, comparisons: Sequence[Versus]) -> list[list[str]]:
    cells = [(each.label, each.pairs, each.metric) for each in comparisons]
    better = set(cells) - {
        cell
        for cell, each in zip(cells, comparisons, strict=True)
        if not each.test.significant or each.test.difference <= 0
    }
    columns = _columns(rows, layout)
    return [
        [label, rows[label].given, str(len(rows[label].results))]
        + [_cell(rows[label], column) + "*" * ((label, *column) in better) for column in columns]
        for label in layout.labels
        if label in rows
    ]


def _cell(row: Row, column: _Column) -> str:
    values = _percent(row, column, column.metric)
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _bounds(row: Row, column: _Column) -> list[float]:
    """Mean over the seeds of the value, its low and its high bound; empty where there is none."""
    found = [_percent(row, column, f"{column.metric}{end}") for end in ("", "_low", "_high")]
    return [float(np.mean(values)) for values in found if values]


def _percent(row: Row, column: _Column, name: str) -> list[float]:
    found = [result["rows"].get(column.pairs, {}).get(name) for result in row.results]
    return [100 * value for value in found if value is not None]
