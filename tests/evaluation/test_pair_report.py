"""The report of pairs: what stands in which table, where the stars are, and that hostile names stay harmless."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from sidray.evaluation.metrics import Ranks
from sidray.evaluation.pair_report import LONG, PLOT, Layout, Row, Versus, pair_plot, pair_table_text, write_pair_report
from sidray.evaluation.pairs import ALL_PAIRS, PairRanks, Pairs, evaluate_pairs
from sidray.evaluation.protocol import Result
from sidray.evaluation.settings import EvaluationSettings
from sidray.evaluation.significance import Comparison
from tests.evaluation.test_pairs import catalogue_of, pair_table

EVIL = "<b>a|b</b>"


def result(greater: list[int]) -> Result:
    """Of four pairs, one of them with a short query note, another with a short target note."""
    items = pa.table({"title": ["a", "a b", "a b c", "a b c", "a b c d"]})
    rows = [(0, 1, "test"), (1, 2, "test"), (2, 0, "test"), (3, 4, "test")]
    pairs = Pairs.of(catalogue_of(items, pair_table(rows)), "test")
    ranks = Ranks(np.array(greater), np.zeros(4, np.int64))
    return evaluate_pairs(pairs, PairRanks(ranks, Ranks(ranks.greater * 2, ranks.equal)), 0.2, [1, 3], [2, 4])


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {
        "BM25": Row("text", [result([0, 5, 5, 5])]),
        "ours": Row("multimodal", [result([0, 0, 0, 5]), result([0, 0, 0, 0]), result([0, 0, 2, 0])]),
        EVIL: Row("image", [result([5, 5, 5, 5])]),
    }


LAYOUTS = {
    f"Table 4: {EVIL}": Layout(["BM25", "absent", "ours", EVIL]),
    "Table 5: nothing was run": Layout(["absent"]),
    "Table 11: long pairs": Layout(["ours", "BM25"], LONG),
}
BETTER, WORSE, LUCK = Comparison(0.5, 0.1, 0.9, 0.01), Comparison(-0.5, -0.9, -0.1, 0.01), Comparison(0.5, 0, 1, 0.2)
COMPARISONS = [
    Versus("ours", "BM25", ALL_PAIRS, "recall@1", BETTER),
    Versus("ours", "BM25", ALL_PAIRS, "recall@3", LUCK),
    Versus("ours", "BM25", ALL_PAIRS, "all recall@4", BETTER),
    Versus("ours", "BM25", "short target pairs", "recall@3", BETTER),
    Versus(EVIL, "BM25", ALL_PAIRS, "recall@1", WORSE),
]


def test_the_report_is_complete(tmp_path: Path, rows: dict[str, Row]) -> None:
    text = write_pair_report(rows, LAYOUTS, tmp_path / "report", COMPARISONS)
    assert (tmp_path / "report" / "report.md").read_text() == text
    lines = text.splitlines()
    columns = ["all pairs: R@1", "all pairs: R@3", "all pairs: R@4 of all"]
    columns += [f"short {side} pairs: R@{k}" for side in ("query", "target") for k in (1, 3)]
    assert "| " + " | ".join(["method", "input", "seeds", *columns]) + " |" in lines
    assert "| BM25 | text | 1 | 25.00 | 25.00 | 25.00 | 100.00 | 100.00 | 0.00 | 0.00 |" in lines
    ours = ["83.33 ± 14.43*", "91.67 ± 14.43", "83.33 ± 14.43*", "100.00 ± 0.00", "100.00 ± 0.00"]
    ours += ["66.67 ± 57.74", "100.00 ± 0.00*"]
    assert "| " + " | ".join(["ours", "multimodal", "3", *ours]) + " |" in lines
    assert "| &lt;b>a\\|b&lt;/b> | image | 1 |" + " 0.00 |" * 7 in lines
    assert "## Table 4: &lt;b>a\\|b&lt;/b>" in lines
    assert (
        "- all pairs: 4 pairs of 4 query notes; every pair of the split, among 5 notes of the pool and 5 of all."
        in (lines)
    )
    assert "<b>" not in text
    assert "absent" not in text
    assert "nothing was run" not in text
    assert "| ours | BM25 | all pairs: R@1 | +50.00 | +10.00 to +90.00 | 0.0100* |" in lines
    assert "| ours | BM25 | all pairs: R@4 of all | +50.00 | +10.00 to +90.00 | 0.0100* |" in lines
    assert any(line.startswith("- BM25: word match") for line in lines)


def test_long_pairs_have_a_table_of_their_own(tmp_path: Path, rows: dict[str, Row]) -> None:
    text = write_pair_report(rows, LAYOUTS, tmp_path)
    table = text[text.index("## Table 11") :].splitlines()
    assert table[2] == "| method | input | seeds | long target pairs: R@1 | long target pairs: R@3 |"  # no long query
    assert [line.split(" | ")[0] for line in table[4:6]] == ["| ours", "| BM25"]
    assert "## Comparisons" not in text
    assert "| ours | multimodal | 3 | 83.33 ± 14.43 |" in text
    other = rows | {"other": Row("text", [{"rows": {ALL_PAIRS: {}}, "rules": {}}])}
    text = write_pair_report(other, {"Table 11": Layout(["other"], LONG)}, tmp_path)
    assert "| other | text | 1 | - | - |" in text


def test_results_are_kept(tmp_path: Path, rows: dict[str, Row]) -> None:
    write_pair_report(rows, LAYOUTS, tmp_path, COMPARISONS)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert list(saved["rows"]) == list(rows)
    assert saved["rows"]["ours"] == {"given": "multimodal", "results": list(rows["ours"].results)}
    assert saved["layouts"]["Table 11: long pairs"] == {"labels": ["ours", "BM25"], "pairs": list(LONG)}
    assert saved["comparisons"][0]["metric"] == "recall@1"
    assert saved["comparisons"][0]["test"] == BETTER._asdict()
    assert list(saved["notes"]) == ["BM25"]


def test_the_terminal_table_shows_the_first_table_on_all_pairs(rows: dict[str, Row]) -> None:
    layouts = {"none": Layout(["absent"]), "[red]first": Layout(["ours", EVIL]), "second": Layout(["BM25"])}
    text = pair_table_text(rows, layouts, COMPARISONS)
    assert text.startswith("[red]first, all pairs (%)")
    assert "83.33 ± 14.43*" in text
    assert EVIL in text
    assert "BM25" not in text
    assert "short" not in text
    assert "R@4 of all" in text
    assert "\x1b" not in text
    assert pair_table_text(rows, {"none": Layout(["absent"])}) == ""


def test_the_plot_is_a_picture_with_bars(tmp_path: Path, rows: dict[str, Row]) -> None:
    write_pair_report(rows, LAYOUTS, tmp_path)
    with Image.open(tmp_path / PLOT) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours  # three bars of each line
    with Image.open(io.BytesIO(pair_plot({f"v{n}": rows["ours"] for n in range(200)}))) as image:
        assert image.height <= 40 * 120
    with Image.open(io.BytesIO(pair_plot({}))) as image:
        assert image.width > 0


def test_settings_of_pairs() -> None:
    found = EvaluationSettings()
    assert (found.short, found.recall_at, found.recall_at_all) == (0.1, [10, 30, 100], [10, 100])
    wrong: list[dict[str, Any]] = [{"short": 0}, {"short": 0.6}, {"recall_at": []}, {"recall_at": [0, 1]}]
    for values in [*wrong, {"recall_at": [30, 10]}, {"recall_at_all": [10, 10]}]:
        with pytest.raises(ValidationError):
            EvaluationSettings(**values)
