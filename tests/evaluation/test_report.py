"""The report's files and the gallery: what stands in them, and that hostile texts and pictures stay harmless."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from sidray.evaluation.gallery import GalleryQuery, choose, write_gallery
from sidray.evaluation.metrics import Ranks
from sidray.evaluation.protocol import Result, evaluate, mean_result
from sidray.evaluation.report import PLOT, plot, table_text, write_report
from sidray.evaluation.settings import EvaluationSettings
from sidray.evaluation.significance import Comparison
from tests.data.makers import picture


@pytest.fixture
def results() -> dict[str, Result]:
    table = pa.table(
        {
            "query": list("abcdef"),
            "query_id": list(range(6)),
            "partition": list("xxxxyy"),
            "kind": ["n", "n", "n", "a|b", "a|b", "a|b"],
        }
    )
    frequency = np.array([150, 1, 1, 1, 1, 1])
    good = evaluate(table, Ranks(np.array([0, 1, 2, 9, 0, 0]), np.zeros(6, int)), frequency)
    bad = evaluate(table, Ranks(np.full(6, 50), np.zeros(6, int)), frequency)
    return {"smgr": good, "popularity": bad}


def test_the_report_is_complete(tmp_path: Path, results: dict[str, Result]) -> None:
    comparisons = {"smgr against popularity": Comparison(1.0, 0.9, 1.1, 0.001)}
    text = write_report(results, tmp_path / "report", comparisons)
    assert (tmp_path / "report" / "report.md").read_text() == text
    saved = json.loads((tmp_path / "report" / "results.json").read_text())
    assert saved["results"] == results
    assert saved["comparisons"]["smgr against popularity"]["p"] == 0.001
    assert text.index("## All clicks") < text.index("## Kind: n") < text.index("## Other partitions")
    assert "## Kind: a\\|b" in text
    assert "- popularity: items by their train clicks" in text
    assert "| smgr against popularity | +1.0000 | +0.9000 to +1.1000 | 0.0010* |" in text
    assert "- BM25: word match" in write_report({"BM25": results["popularity"]}, tmp_path / "other")
    tables = [line for line in text.splitlines() if line.startswith("| smgr |")]
    assert len(tables) == len(results["smgr"]["rows"]) == 6
    assert tables[0].startswith("| smgr | 0.5000 | 0.8333 | 1.0000 | 1.000-1.000 | 1.0000 |")


def test_several_seeds_show_their_deviation(tmp_path: Path, results: dict[str, Result]) -> None:
    several = {"smgr": mean_result([results["smgr"], results["popularity"]]), "popularity": results["popularity"]}
    text = write_report(several, tmp_path)
    assert "| smgr | 0.2500 ± 0.3536 |" in text
    assert "Of several seeds the mean" in text
    assert "0.2500 ± 0.3536" in table_text(several)
    assert "seeds" not in write_report(results, tmp_path)


def test_the_plot_is_a_picture_with_both_variants(tmp_path: Path, results: dict[str, Result]) -> None:
    write_report(results, tmp_path)
    with Image.open(tmp_path / PLOT) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert (31, 119, 180) in colours
    with Image.open(io.BytesIO(plot({f"v{n}": results["smgr"] for n in range(12)}))) as image:
        assert image.width <= 24 * 120


def test_the_terminal_table_shows_names_as_they_are(results: dict[str, Result]) -> None:
    text = table_text({"[red]odd[/red]": results["smgr"], "popularity": results["popularity"]})
    assert "[red]odd[/red]" in text
    assert "0.8333" in text
    assert "\x1b" not in text
    assert text.startswith("all clicks")


class Page(HTMLParser):
    """Collects the tags of a page and every address that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.classes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.classes += [value or "" for name, value in attrs if name == "class"]


def test_the_gallery_is_self_contained_and_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    stored = {0: ("plain", picture("red")), 1: (evil, picture("blue")), 2: ("none", None), 3: ("broken", b"\x89PNG..")}
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
    stored[4] = ("svg", svg)
    queries = [GalleryQuery(evil, clicked=1, partition=evil), GalleryQuery("b", clicked=0)]
    write_gallery(tmp_path / "g.html", queries, {evil: [[0, 1, -1], [2, 3, 4]]}, stored.__getitem__)
    text = (tmp_path / "g.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("img") == 4  # two clicked items, and two results with a picture
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert page.classes.count("clicked") == 3  # both clicked items, and the one that was found
    assert text.count("no picture") == 1
    assert text.count("unreadable") == 2
    assert "http" not in text.replace("http-equiv", "")
    assert "onload" not in text


def test_gallery_queries_are_distinct_and_repeatable() -> None:
    clicks = pa.table({"query_id": [5, 5, 5, 7, 7, 9, 2]})
    chosen = choose(clicks, 3)
    assert chosen == choose(clicks, 3)
    assert len({clicks["query_id"][n].as_py() for n in chosen}) == 3
    assert choose(clicks, 99) == [0, 3, 5, 6]
    assert {tuple(choose(clicks, 1, seed)) for seed in range(20)} == {(0,), (3,), (5,), (6,)}


def test_settings_refuse_what_cannot_be() -> None:
    assert EvaluationSettings().split == "test"
    for wrong in ({"split": "train"}, {"gallery_k": 0}, {"ks": [1]}):
        with pytest.raises(ValidationError):
            EvaluationSettings(**wrong)
