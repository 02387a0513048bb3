"""SMGR's tables 1 to 4 and figure 1, NoteLLM-2's tables 2 to 6 and figures 3 and 4, beside the papers' numbers.

    python jobs/bench/reproduce.py [--tables smgr-1 ...] [--seeds N] [--root URI] [--data FOLDER] [--size base]

Every row is a row of a recipe (reproduce-*): its steps are kept under the root and are not computed twice, so the same
command goes on where it was killed. One seed of every table comes first, then the others. After each table the report
is written anew: report.md, results.json, pictures and, in ranks/, what each row found; rows that are not there yet say
so, but a data set stays as it is, and the report says that it is of earlier code, as long as rows would leave it.
--missing: only rows that ranks/ does not have, so that seeds of several machines come into one report. --data: the
folder of the H&M articles; without it their tables stay as they are. --only-report: from what is done, computing no
row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reproduce_figures import figure, figure_steps
from reproduce_kept import Kept
from reproduce_report import report_text
from reproduce_results import made, part_sizes, table_results
from reproduce_rows import Bench, open_bench
from reproduce_spec import Spec, load_spec

from sidray.cluster import prepare_environment, ray_cluster
from sidray.errors import UserError

OUT = Path(__file__).resolve().parent / "results"
RECIPES = {  # size -> system -> data set -> recipe
    "small": {
        "smgr": {"pictograms": "reproduce-pictograms", "hm": "reproduce-hm"},
        "notellm2": {"hm": "reproduce-notes"},
    },
    "base": {
        "smgr": {"pictograms": "reproduce-pictograms-base", "hm": "reproduce-hm-base"},
        "notellm2": {"hm": "reproduce-notes-base"},
    },
    "debug": {"smgr": {"pictograms": "reproduce-debug"}, "notellm2": {"pictograms": "notellm2-debug"}},
}
Benches = dict[str, dict[str, Bench]]


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def open_benches(size: str, root: str, data: str, out: Path) -> Benches:
    """system -> data set -> its rows; data sets that are not there are left out."""
    benches: Benches = {}
    for system, recipes in RECIPES[size].items():
        there = {name: recipe for name, recipe in recipes.items() if name != "hm" or data}
        overrides = {name: [f"runs.root={root}"] + [f"data.folder={data}"] * (name == "hm") for name in there}
        kept = {name: Kept(out / "ranks", f"{system}-{name}") for name in there}
        benches[system] = {name: open_bench(each, overrides[name], kept[name], say) for name, each in there.items()}
    return benches


def compute(spec: Spec, benches: Benches, tables: list[str], seeds: int, out: Path, missing: bool = False) -> None:
    """Seed by seed and table by table; the report after each. missing: only what is not kept."""
    for system in {spec.tables[name].system for name in tables} or benches:
        for bench in benches[system].values():
            _attempt(bench, "catalogue", partial(bench.store.ensure, bench.catalogue))
    for seed in range(seeds):
        for name in tables:
            table = spec.tables[name]
            for data, bench in benches[table.system].items():
                say(f"{name} on {data}, seed {seed + 1} of {seeds}")
                for row in table.rows.values():
                    _attempt(bench, row.ours, partial(bench.compute, row.ours, seed, missing))
                write(spec, benches, seeds, out)
        if seed == 0:
            _compute_figures(spec, benches, tables, _before(out)["figures"] if missing else {})
    write(spec, benches, seeds, out)


def _attempt(bench: Bench, label: str, work: Callable[[], object]) -> None:
    """A row that fails says why in the report, and the others go on."""
    try:
        work()
    except UserError as error:
        bench.failed[label] = error.problem.splitlines()[0]
        say(f"{label}: {error}")
    except Exception as error:
        bench.failed[label] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        traceback.print_exc()


def _compute_figures(spec: Spec, benches: Benches, tables: list[str], drawn: dict[str, Any]) -> None:
    """Those of the systems that the tables are of, without the ones that are drawn."""
    systems = {spec.tables[name].system for name in tables}
    for name, each in spec.figures.items():
        for data, bench in benches[each.system].items() if each.system in systems else ():
            steps = figure_steps(name, bench)
            missing = drawn.get(name, {}).get(data, {}).get("keys") != [step.key for step in steps]
            for step in steps if missing else ():
                _attempt(bench, each.title, partial(bench.store.ensure, step))


def write(spec: Spec, benches: Benches, seeds: int, out: Path) -> None:
    """report.md, results.json and the figures, of what is kept or in the store. Data sets that are not here stay as
    results.json has them."""
    results = _before(out)
    for system, each in benches.items():
        tables = {name: table for name, table in spec.tables.items() if table.system == system}
        for data, bench in each.items():
            if bench.store.manifest(bench.catalogue) is None:
                continue
            bench.keep((row.ours for table in tables.values() for row in table.rows.values()), seeds)
            found = {name: table_results(each, spec.systems[system], bench, seeds) for name, each in tables.items()}
            if lost := _lost(results["tables"], found, data):
                say(f"{system} on {data} stays as it is in the report: {len(lost)} rows are missing, first {lost[0]}")
                results["made"][system][data]["lost"] = len(lost)
                continue
            for name, table in tables.items():
                results["tables"].setdefault(name, {})[data] = found[name] | {"sizes": part_sizes(table.parts, bench)}
            results["made"].setdefault(system, {})[data] = made(tables.values(), bench, seeds)
    for name, figures in spec.figures.items():
        for data, bench in benches[figures.system].items():
            if (drawn := figure(name, bench, out / f"{name}-{data}.png")) is not None:
                results["figures"].setdefault(name, {})[data] = drawn
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report_text(spec, results))


def _lost(before: dict[str, Any], found: dict[str, Any], data: str) -> list[str]:
    """Rows that the report has and that would no longer be in it."""
    return [
        f"{row} ({name})"
        for name, table in found.items()
        for row, values in before.get(name, {}).get(data, {"rows": {}})["rows"].items()
        if "values" in values and "values" not in table["rows"].get(row, {"values": None})
    ]


def _before(out: Path) -> dict[str, Any]:
    path = out / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"tables": {}, "figures": {}, "made": {}}


def main() -> int:
    spec = load_spec()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(spec.tables), default=list(spec.tables))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="./sidray-runs")
    parser.add_argument("--data", default="")
    parser.add_argument("--size", choices=list(RECIPES), default="small")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--only-report", action="store_true")
    args = parser.parse_args()
    prepare_environment()
    out = args.out or OUT / ("reproduce" if args.size == "small" else f"reproduce-{args.size}")
    out.mkdir(parents=True, exist_ok=True)
    benches = open_benches(args.size, args.root, args.data, out)
    with ray_cluster():
        compute(spec, benches, [] if args.only_report else args.tables, args.seeds, out, args.missing)
    failed = {label: why for each in benches.values() for bench in each.values() for label, why in bench.failed.items()}
    say(f"report: {out / 'report.md'}" + "".join(f"\n  {label} failed: {why}" for label, why in failed.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
