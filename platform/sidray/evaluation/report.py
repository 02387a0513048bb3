"""The report of a run: results.json, report.md and recall_at_10.png in one folder.

text = write_report({"smgr": result, "popularity": ...}, Path("report"))
print(table_text(results))  # the same first table, for a terminal
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidray import storage
from sidray.evaluation.metrics import NDCG_AT, RECALL_AT
from sidray.evaluation.protocol import ALL_CLICKS, WITH_INTERVAL, Result
from sidray.evaluation.significance import Comparison

METRICS = tuple([f"recall@{k}" for k in RECALL_AT] + [f"ndcg@{k}" for k in NDCG_AT])
PLOT = "recall_at_10.png"

NOTES = {
    "popularity": "items by their train clicks; cold items have none: chance among them, behind every warm one",
    "BM25": "word match of the query with the item's whole text, which prompts may cut; sees no picture",
    "oracle": "the ceiling: a perfect ranker that cannot tell the items of the same query apart",
    "dual-tower": "query against the text of the item alone, no picture and no SIDs",
    "random": "random vectors in place of the pictures' (SMGR appendix D): what the rest of the model does alone",
    "shuffled-images": "every item with another item's picture: a model that looks at pictures must fall",
}
_HOW = (
    "R@k and N@k are Recall@k and NDCG@k of the clicked item among the candidates (the items that occur in clicks) of "
    "the click's partition. Ties are counted in expectation over their orders. The interval is 95 %, over queries."
)
_SEEDS = " Of several seeds the mean ± the standard deviation over them is shown, and the mean of their intervals."
_PAIRED = (
    "Paired over the clicks, each counted with the mean over its seeds, and resampled by query; what other seeds "
    "would give is not in it. * marks p < 0.05."
)


def write_report(
    results: Mapping[str, Result],
    folder: Path,
    comparisons: Mapping[str, Comparison] | None = None,
) -> str:
    """Writes the three files and returns the text of report.md.

    results: variant -> what protocol.evaluate gave, in the order of the tables. comparisons: "a against b" -> its test
    on R@10."""
    known = {name: NOTES[name] for name in results if name in NOTES}
    text = _markdown(results, known, comparisons or {})
    saved = {
        "results": results,
        "notes": known,
        "comparisons": {name: each._asdict() for name, each in (comparisons or {}).items()},
    }
    storage.write_json(str(folder / "results.json"), saved)
    storage.write_bytes(str(folder / "report.md"), text.encode())
    storage.write_bytes(str(folder / PLOT), plot(results))
    return text


def table_text(results: Mapping[str, Result]) -> str:
    """All clicks' row of the report for all variants as a plain text table; with standard deviations it is wider."""
    spread = any("seeds" in values for result in results.values() for values in result["rows"].values())
    return plain_table(ALL_CLICKS, _header(), _table(results, ALL_CLICKS), 110 + 64 * spread)


def plain_table(title: str, columns: list[str], cells: Iterable[list[str]], width: int) -> str:
    """A table for a terminal: text as it is, without colours, the first column to the left."""
    table = Table(title=Text(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def plot(results: Mapping[str, Result]) -> bytes:
    """Recall@10 of every variant in every row, with intervals: a PNG."""
    rows, variants = _rows(results), list(results)
    inches = min(24.0, max(7.0, 1.5 + 0.32 * len(rows) * (len(variants) + 1)))
    figure = Figure(figsize=(inches, 4.6), dpi=120)
    axes = figure.subplots()
    palette = colormaps["tab10" if len(variants) <= 10 else "tab20"]
    axes.set_prop_cycle(color=[palette(number) for number in range(palette.N)])
    width = 0.84 / max(1, len(variants))
    for number, variant in enumerate(variants):
        have = [
            (place, results[variant]["rows"][row]) for place, row in enumerate(rows) if row in results[variant]["rows"]
        ]
        x = [place + (number - (len(variants) - 1) / 2) * width for place, _ in have]
        heights = np.array([values[WITH_INTERVAL] for _, values in have])
        low = heights - [values[f"{WITH_INTERVAL}_low"] for _, values in have]
        high = np.array([values[f"{WITH_INTERVAL}_high"] for _, values in have]) - heights
        axes.bar(x, heights, width * 0.92, label=variant, yerr=[low, high], ecolor="#444", error_kw={"lw": 0.8})
    axes.set_xticks(range(len(rows)), [row.replace(": ", ":\n").replace(" ", "\n") for row in rows])
    axes.set_ylabel("Recall@10")
    axes.set_ylim(0, 1.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The drawn figure; a Figure of its own, without pyplot, draws with Agg: no display is needed."""
    figure.tight_layout()
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _markdown(results: Mapping[str, Result], notes: Mapping[str, str], comparisons: Mapping[str, Comparison]) -> str:
    rules = {name: rule for result in results.values() for name, rule in result["rules"].items()}
    several = any("seeds" in values for result in results.values() for values in result["rows"].values())
    parts = ["# Evaluation", _HOW + _SEEDS * several, f"![Recall@10 of every variant]({PLOT})"]
    for row in _rows(results):
        sizes = next(result["rows"][row] for result in results.values() if row in result["rows"])
        size = f"{sizes['clicks']:.0f} clicks of {sizes['queries']:.0f} queries: {escaped(rules[row])}."
        parts += [f"## {escaped(row[:1].upper() + row[1:])}", size, markdown_table(_header(), _table(results, row))]
    if comparisons:
        columns = ["R@10", "difference", "95 %", "p"]
        cells = [
            [name, f"{c.difference:+.4f}", f"{c.low:+.4f} to {c.high:+.4f}", f"{c.p:.4f}{'*' if c.significant else ''}"]
            for name, c in comparisons.items()
        ]
        parts += ["## Comparisons", _PAIRED, markdown_table(columns, cells)]
    if notes:
        parts += ["## What the variants are", "\n".join(f"- {escaped(name)}: {escaped(notes[name])}" for name in notes)]
    return "\n\n".join(parts) + "\n"


def _rows(results: Mapping[str, Result]) -> list[str]:
    """The union of the variants' rows, in the order in which they appear."""
    return list(dict.fromkeys(row for result in results.values() for row in result["rows"]))


def _header() -> list[str]:
    short = [name.replace("recall", "R").replace("ndcg", "N") for name in METRICS]
    place = METRICS.index(WITH_INTERVAL) + 1
    return ["variant", *short[:place], "95 %", *short[place:]]


def _table(results: Mapping[str, Result], row: str) -> list[list[str]]:
    lines = []
    for variant, result in results.items():
        if values := result["rows"].get(row):
            cells = [_cell(values, name) for name in METRICS]
            bounds = f"{values[f'{WITH_INTERVAL}_low']:.3f}-{values[f'{WITH_INTERVAL}_high']:.3f}"
            cells.insert(METRICS.index(WITH_INTERVAL) + 1, bounds)
            lines.append([variant, *cells])
    return lines


def _cell(values: Mapping[str, float], name: str) -> str:
    spread = values.get(f"{name}_sd")
    return f"{values[name]:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def markdown_table(columns: list[str], cells: Iterable[list[str]]) -> str:
    marks = ["---" if n == 0 else "---:" for n in range(len(columns))]
    return "\n".join("| " + " | ".join(escaped(cell) for cell in line) + " |" for line in [columns, marks, *cells])


def escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
