"""The harness of the papers' tables: what it holds, renders and concludes, from rows whose answers are known."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.evaluation.metrics import Ranks
from sidray.evaluation.significance import Comparison, compare_clicks
from sidray.recipe import load_recipe
from sidray.report_clicks import ClicksReport
from sidray.report_pairs import PairsReport
from sidray.run import run_recipe, seeded_graphs

BENCH = str(Path(__file__).resolve().parents[2] / "jobs" / "bench")
sys.path.insert(0, BENCH)  # benchmarks import each other as scripts do

import reproduce  # noqa: E402
from reproduce_figures import loss_trends, saliency_trend  # noqa: E402
from reproduce_kept import LIMIT, Kept  # noqa: E402
from reproduce_report import report_text  # noqa: E402
from reproduce_results import made, part_sizes, table_results, verdict  # noqa: E402
from reproduce_rows import BASELINES, METRICS, open_bench  # noqa: E402
from reproduce_spec import Claim, Spec, load_spec  # noqa: E402

sys.path.remove(BENCH)


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load_spec()


class Canned:
    """A bench over 200 clicks of 50 queries: row -> share of clicks that it finds, seed by seed."""

    def __init__(self, rows: dict[str, list[float]]) -> None:
        self.rows = rows
        self.failed = {"mtiger": "the disk is full"}

    def step(self, label: str, seed: int) -> object:
        return object()

    def done(self, label: str, seeds: int) -> list[int]:
        return list(range(min(seeds, len(self.rows.get(label, [])))))

    def values(self, label: str, metric: str, seed: int) -> np.ndarray:
        return (np.arange(200) % 100 < 100 * self.rows[label][seed]).astype(float)

    def mask(self, parts: list[str]) -> np.ndarray | None:
        return None if parts == ["other"] else np.ones(200, bool)

    def compare(self, first: np.ndarray, second: np.ndarray) -> Comparison:
        return compare_clicks(first, second, np.arange(200) // 4)

    def about(self, label: str, seed: int) -> dict[str, Any]:
        made = {"machine": "a laptop", "versions": {"python": "3.11"}, "commit": "ab"[seed % 2]}
        seconds = {"shared": 3600.0, f"{label}-{seed}": 600.0}
        return {"train_s": [90.0, 12.0, 10.0][seed], "samples": {"query2item": 51200}, "seconds": seconds, "made": made}


def results(spec: Spec, rows: dict[str, list[float]], seeds: int = 3) -> dict[str, Any]:
    bench: Any = Canned(rows)
    table = spec.tables["smgr-1"]
    found = table_results(table, spec.systems["smgr"], bench, seeds) | {"sizes": part_sizes(table.parts, bench)}
    with_what = {"smgr": {"hm": made([table], bench, seeds)}}
    return json.loads(json.dumps({"tables": {"smgr-1": {"hm": found}}, "figures": {}, "made": with_what}))


def test_the_tables_stand_beside_the_papers(spec: Spec) -> None:
    found = results(spec, {"smgr": [0.6, 0.62, 0.61], "dual-tower": [0.4, 0.41, 0.42], "tiger": [0.5] * 3})
    text = report_text(spec, found)
    lines = [line for line in text.splitlines() if line.startswith("| SMGR |")]
    assert lines[0].startswith("| SMGR | 3 | 61.00 ± 1.00 | 58.19 | 61.00 ± 1.00 | 41.65 | 61.00 ± 1.00 | 72.92 |")
    assert "| TIGER | 3 | 50.00 ± 0.00 | 53.82 |" in text
    assert "| MTIGER | not run: the disk is full | - | 56.01 |" in text
    assert "| Joint-Que2search | not run: not computed yet | - | 53.78 |" in text
    assert "hm has no such part" in text  # the other cities
    assert "The claim “SMGR is above its best baseline, MTIGER”: not tested, the disk is full." in text
    assert "The claim “SMGR is above the text-only dual tower” holds. R@10 of SMGR: 61.00" in text
    assert "of Qwen3-DualTower: 41.00; +20.00 points" in text
    assert "over seeds p = " in text
    assert "| smgr | 12 | 51,200 |" in text  # the median: other work slowed the first seed
    assert "- hm: H&M's articles. The numbers in the repository are of a prepared part of them: 14,811" in text
    assert "- SMGR on hm: 2.5 h on a laptop with python 3.11, of commit a, b\n" in text  # 9 rows' steps, a shared one
    assert report_text(spec, found) == text


def test_a_row_of_ours_alone_has_no_number_of_the_papers(spec: Spec) -> None:
    table = spec.tables["smgr-1"]
    rows = table.rows | {"TIGER": table.rows["TIGER"].model_copy(update={"paper": []})}
    mixed = spec.model_copy(update={"tables": {"smgr-1": table.model_copy(update={"rows": rows})}})
    text = report_text(mixed, results(mixed, {"smgr": [0.6], "tiger": [0.5]}))
    assert "| TIGER | 1 | 50.00 | - | 50.00 | - |" in text
    controls = spec.tables["smgr-controls"].rows.values()
    assert not any(row.paper for row in controls)  # the paper has no row over all clicks


def test_a_verdict_flips_with_the_numbers(spec: Spec) -> None:
    for better, said in (
        ("smgr", "holds (of 1 seed)."),
        ("mtiger", "does not hold: it is the other way round (of 1 seed)."),
    ):
        worse = "mtiger" if better == "smgr" else "smgr"
        text = report_text(spec, results(spec, {better: [0.6], worse: [0.4]}))
        assert f"“SMGR is above its best baseline, MTIGER” {said}" in text
    text = report_text(spec, results(spec, {"smgr": [0.5], "mtiger": [0.5]}))
    assert "MTIGER” does not hold: no difference beyond chance (of 1 seed)." in text


def test_a_claim_is_tested_by_each_metric_of_its_system(spec: Spec) -> None:
    system = spec.systems["smgr"].model_copy(update={"tested": ["recall@5", "ndcg@10", "recall@20"]})

    class Deep(Canned):
        """SMGR finds more than TIGER, and the dual tower less, but not among five."""

        def values(self, label: str, metric: str, seed: int) -> np.ndarray:
            return super().values("mtiger" if metric == "recall@5" else label, metric, seed)

    bench: Any = Deep({"smgr": [0.6], "mtiger": [0.4], "dual-tower": [0.3]})
    table = spec.tables["smgr-1"]
    found = json.loads(json.dumps(table_results(table, system, bench, 1) | {"sizes": part_sizes(table.parts, bench)}))
    text = report_text(spec, results(spec, {"smgr": [0.6]}) | {"tables": {"smgr-1": {"hm": found}}})
    assert "At R@5 the claim “SMGR is above its best baseline, MTIGER” does not hold: no difference" in text
    assert "At ndcg@10 and R@20 the claim “SMGR is above its best baseline, MTIGER” holds (of 1 seed). ndcg@10" in text
    cell = "R@5: does not hold: no difference beyond chance (of 1 seed); ndcg@10: holds (of 1 seed); R@20: holds"
    assert f"| SMGR is above its best baseline, MTIGER | {cell}" in text


def test_the_rows_of_a_table_are_of_the_same_seeds(spec: Spec) -> None:
    found = results(spec, {"smgr": [0.6, 0.2], "tiger": [0.5], "dual-tower": [0.4] * 3})["tables"]["smgr-1"]["hm"]
    assert {name: row["seeds"] for name, row in found["rows"].items() if "seeds" in row} == {
        "Qwen3-DualTower": 1,
        "TIGER": 1,
        "SMGR": 1,
    }
    assert found["rows"]["SMGR"]["values"]["all queries, popular cities"]["R@10"] == [60]


def test_rows_are_compared_over_the_seeds_that_both_have(spec: Spec) -> None:
    found = results(spec, {"smgr": [0.6, 0.2, 0.1], "dual-tower": [0.4]})["tables"]["smgr-1"]["hm"]["claims"][1]
    (test,) = found["tests"]
    assert test["means"] == [60, 40]
    assert "over_seeds" not in test
    table = spec.tables["smgr-controls"].model_copy(update={"claims": [Claim(**BM25)]})
    bench: Any = Canned({"smgr": [0.6, 0.2, 0.1], "BM25": [0.25]})
    assert table_results(table, spec.systems["smgr"], bench, 3)["claims"][0]["tests"][0]["means"] == [
        pytest.approx(30),
        25,
    ]


def test_rows_do_not_leave_the_report_unnoticed(spec: Spec) -> None:
    """As when only a part of them is kept or in the store."""
    whole = results(spec, {"smgr": [0.6], "tiger": [0.5]})["tables"]
    part = {name: found["hm"] for name, found in results(spec, {"smgr": [0.6, 0.7]})["tables"].items()}
    assert reproduce._lost(whole, part, "hm") == ["TIGER (smgr-1)"]
    assert reproduce._lost(whole, part, "pictograms") == []
    assert reproduce._lost({"smgr-1": {"hm": part["smgr-1"]}}, {"smgr-1": whole["smgr-1"]["hm"]}, "hm") == []


BM25: dict[str, Any] = {"says": "above BM25", "first": "SMGR", "second": "BM25", "expect": "above"}


@pytest.mark.parametrize(
    ("expect", "test", "said"),
    [
        ("above", Comparison(2, 1, 3, 0.01), "holds"),
        ("above", Comparison(2, -1, 5, 0.2), "does not hold: no difference beyond chance"),
        ("above", Comparison(-2, -3, -1, 0.01), "does not hold: it is the other way round"),
        ("below", Comparison(-2, -3, -1, 0.01), "holds"),
        ("below", Comparison(2, 1, 3, 0.01), "does not hold: it is the other way round"),
        ("equal", Comparison(0.1, -0.5, 0.7, 0.8), "holds"),
        ("equal", Comparison(0.5, 0.2, 0.8, 0.01), "holds"),
        ("equal", Comparison(0.5, -1.5, 2.5, 0.6), "is not decided: the interval is wider than a point"),
        ("equal", Comparison(3, 2, 4, 0.01), "does not hold"),
        ("number", Comparison(3, 2, 4, 0.01), ""),
    ],
)
def test_verdicts_follow_from_the_test_alone(expect: str, test: Comparison, said: str) -> None:
    clear = Comparison(0, -0.5, 0.5, 0.9) if expect == "equal" else Comparison(2, 1, 3, 0.01)  # over the seeds
    unclear = Comparison(2, -1, 5, 0.2)
    assert verdict(expect, test, clear, 3) == said
    assert verdict(expect, test, None, 2) == (f"{said} (of 2 seeds)" if said else "")
    assert verdict(expect, test, unclear, 3).startswith(said)
    decided = said == "holds" if expect == "equal" else bool(said) and "chance" not in said
    assert ("other seeds" in verdict(expect, test, unclear, 3)) == decided


def test_the_papers_numbers(spec: Spec) -> None:
    """Some from every paper's text: SMGR's section 5.2 to 5.5 and NoteLLM-2's 2.4."""
    means = {
        label: np.mean([part[2] for part in spec.tables["smgr-1"].rows[label].paper[:2]])
        for label in ("SMGR", "MTIGER")
    }
    assert 100 * (means["SMGR"] / means["MTIGER"] - 1) == pytest.approx(2.64, abs=0.01)
    table2 = spec.tables["notellm2-2"].rows
    assert 100 * (table2["MTomato-Base"].paper[0][0] / table2["Tomato"].paper[0][0] - 1) == pytest.approx(
        1.31, abs=0.01
    )
    for name in ("smgr-2", "smgr-3", "smgr-4"):
        best = max((row for row in spec.tables[name].rows.values() if row.paper), key=lambda row: row.paper[0][0])
        assert list(spec.tables[name].rows.values())[-1] == best  # ours of the paper is the last row
    for table in spec.tables.values():
        sizes = {len(part) for row in table.rows.values() for part in row.paper}
        assert sizes <= {len(spec.systems[table.system].metrics)}


def test_every_row_is_one_of_the_recipes(spec: Spec) -> None:
    for system, recipes in reproduce.RECIPES["small"].items():
        for name in recipes.values():
            recipe, variants, _ = load_recipe(name, ["data.folder=x"] * (name != "reproduce-pictograms"))
            report: Any = ClicksReport if system == "smgr" else PairsReport
            known = {*report(recipe, seeded_graphs({recipe.label: recipe, **variants})).rows, *BASELINES}
            wanted = {
                row.ours for table in spec.tables.values() if table.system == system for row in table.rows.values()
            }
            assert wanted - {""} <= known


def test_what_joint_training_does_to_the_losses() -> None:
    rng = np.random.default_rng(0)
    steps, noise = np.arange(200), rng.normal(size=(4, 200)) / 10
    fast, slow = np.exp(-steps / 20), np.exp(-steps / 80)
    raw = {
        "query2item": list(fast + noise[0]),
        "query2text": list(fast + noise[0] + noise[1] / 10),
        "image2text": list(slow + noise[2]),
        "query2image": list(slow + noise[3]),
    }
    found = loss_trends(raw)
    assert found["verdict"] == "holds"
    assert found["moves"]["query2text"] > 0.9
    assert found["moves"]["image2text"] < 0.3
    assert found["fallen"]["image2text"] > found["fallen"]["query2text"]
    assert loss_trends(raw | {"query2text": raw["image2text"], "image2text": raw["query2text"]})["verdict"] != "holds"


def test_what_flows_from_the_picture() -> None:
    basic, own = ({"S_v": [low, 0.5], "S_t": [0.2, 0.2], "S_o": [0.1, 0.1]} for low in (0.1, 0.3))
    assert saliency_trend({"basic method": basic, "NoteLLM-2": own})["verdict"] == "holds"
    assert saliency_trend({"basic method": own, "NoteLLM-2": basic})["verdict"] == "does not hold"
    last = {
        label: {name: values[:1] for name, values in scores.items()}
        for label, scores in (("basic method", basic), ("NoteLLM-2", own))
    }
    assert saliency_trend(last)["verdict"] == "is not tested, the last layer alone is trained"


@pytest.mark.ray
def test_it_reads_what_a_run_left(debug_run: str, spec: Spec, tmp_path: Path) -> None:
    """The report of a store where SMGR alone is done: its numbers are the run's, the other rows say why not."""
    root = debug_run.rsplit("/runs/", 1)[0]
    bench = open_bench("smgr-debug", [f"runs.root={root}"], Kept(tmp_path / "ranks", "smgr"), lambda line: None)
    reproduce.write(spec, {"smgr": {"pictograms": bench}, "notellm2": {}}, 2, tmp_path)
    everything = json.loads((tmp_path / "results.json").read_text())
    saved = everything["tables"]["smgr-controls"]["pictograms"]["rows"]
    run = json.loads((Path(debug_run) / "report" / "results.json").read_text())["results"]
    for name, label in (("SMGR", "smgr"), ("BM25", "BM25")):
        found = saved[name]["values"]["all clicks"]["R@10"]
        assert found == [pytest.approx(100 * run[label]["rows"]["all clicks"]["recall@10"])]
    assert saved["no SIDs"] == {"not_run": "the recipe has no row 'no-sids'"}
    assert saved["SMGR"]["samples"]["query2item"] == 2 * 6 * 32
    report = (tmp_path / "report.md").read_text()
    assert "SMGR, controls" in report

    # Elsewhere, where only the catalogue is done, what is kept gives the same report and is not computed again.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(f"{root}/steps/{bench.catalogue.folder}", elsewhere / "steps" / bench.catalogue.folder)
    again = open_bench("smgr-debug", [f"runs.root={elsewhere}"], Kept(tmp_path / "ranks", "smgr"), lambda line: None)
    again.compute("smgr", 0, missing=True)
    assert [path.name for path in (elsewhere / "steps").iterdir()] == [bench.catalogue.folder]
    reproduce.write(spec, {"smgr": {"pictograms": again}, "notellm2": {}}, 2, tmp_path)
    assert (tmp_path / "report.md").read_text() == report
    assert open_bench("smgr-debug", [f"runs.root={root}"], Kept(tmp_path, "none"), print).done("smgr", 1) == []

    # Without the data the report stays as it is.
    reproduce.write(spec, {"smgr": {}, "notellm2": {}}, 2, tmp_path)
    assert (tmp_path / "report.md").read_text() == report
    assert json.loads((tmp_path / "results.json").read_text()) == everything

    # Where its rows are not to be had, it stays and says so: as after a change of the code.
    none = open_bench("smgr-debug", [f"runs.root={elsewhere}"], Kept(tmp_path, "none"), lambda line: None)
    reproduce.write(spec, {"smgr": {"pictograms": none}, "notellm2": {}}, 2, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["tables"] == everything["tables"]
    assert "rows are computed again" in (tmp_path / "report.md").read_text()
    reproduce.write(spec, {"smgr": {"pictograms": again}, "notellm2": {}}, 2, tmp_path)
    assert (tmp_path / "report.md").read_text() == report


ABOUT: dict[str, Any] = {"key": "k1", "train_s": 1.5}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)), min_size=1))
def test_what_is_kept_of_ranks_is_enough_for_every_metric(tmp_path_factory: Any, pairs: list[tuple[int, int]]) -> None:
    ranks = Ranks(*np.array(pairs).T)
    Kept(folder := tmp_path_factory.mktemp("kept"), "smgr-hm").add("a row", 2, ranks, ABOUT)
    row = Kept(folder, "smgr-hm").find("a row", 2, "k1")
    assert row is not None
    assert row.about == ABOUT
    for metric in {metric for system in load_spec().systems.values() for metric in system.metrics.values()}:
        name, _, k = metric.partition("@")
        assert int(k) <= LIMIT
        np.testing.assert_array_equal(METRICS[name](*row.ranks, int(k)), METRICS[name](*ranks, int(k)))


def test_where_the_data_lie_is_not_in_the_key_of_what_is_kept(tmp_path: Path) -> None:
    here, there = (
        open_bench("reproduce-hm", [f"runs.root={tmp_path}", f"data.folder={folder}"], Kept(tmp_path, "hm"), print)
        for folder in ("a", "b")
    )
    assert here.rows["smgr"][0].key != there.rows["smgr"][0].key
    assert here.keys == there.keys
    assert len({key for keys in here.keys.values() for key in keys}) > 3 * 24  # each row and seed has one of its own


def test_a_row_is_kept_as_long_as_its_key_is_the_recipes(tmp_path: Path) -> None:
    first, second = (Ranks(np.full(3, n), np.zeros(3, int)) for n in (1, 2))
    kept = Kept(tmp_path, "smgr-hm")
    kept.add("tiger", 0, first, ABOUT)
    kept.add("smgr", 0, second, {**ABOUT, "key": "k2"})
    kept.add("smgr", 1, second, ABOUT)
    assert [kept.find(*each) is not None for each in [("tiger", 0, "k1"), ("smgr", 0, "k1"), ("tiger", 1, "k1")]] == [
        True,
        False,
        False,
    ]
    kept.add("tiger", 0, second, {**ABOUT, "key": "k3"})
    again = Kept(tmp_path, "smgr-hm")
    found = again.find("tiger", 0, "k3")
    assert again.find("tiger", 0, "k1") is None
    assert found is not None
    assert found.ranks.greater.tolist() == [2, 2, 2]
    kept.add("joint", 0, Ranks(np.zeros(4, int), np.zeros(4, int)), ABOUT)  # of four clicks: those rows are of others
    assert again.find("smgr", 0, "k2") is not None
    assert Kept(tmp_path, "smgr-hm").find("smgr", 0, "k2") is None


@pytest.mark.slow
@pytest.mark.ray
def test_a_table_with_two_seeds_from_end_to_end(ray_session: None, spec: Spec, tmp_path: Path) -> None:
    """SMGR's table 1 in the debug size; then `sidray run` finds the stages of both seeds done."""
    (out := tmp_path / "out").mkdir()
    bench = open_bench("reproduce-debug", [f"runs.root={tmp_path}"], Kept(out / "ranks", "smgr"), print)
    reproduce.compute(spec, {"smgr": {"pictograms": bench}, "notellm2": {}}, ["smgr-1"], 2, out)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = found["tables"]["smgr-1"]["pictograms"]["rows"]
    assert {name: row.get("seeds", row.get("not_run")) for name, row in rows.items()} == dict.fromkeys(rows, 2)
    for row in rows.values():
        first, second = row["values"]["all queries, other cities"]["R@20"]
        assert first != second  # another seed
    assert (tmp_path / "out" / "smgr-1a-pictograms.png").exists()
    said: list[str] = []
    table = run_recipe("smgr-debug", [f"runs.root={tmp_path}", "seeds=[42, 43]"], say=said.append).table
    assert "±" in next(line for line in table.splitlines() if "│ smgr " in line)
    assert not any(line.startswith("stage") for line in said)
