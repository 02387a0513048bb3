"""SMGR's tables 1 to 4 and figure 1, NoteLLM-2's tables 2 to 6 and figures 3 and 4, beside the papers' numbers.

    python jobs/bench/reproduce.py [--tables smgr-1 ...] [--seeds N] [--root URI] [--data FOLDER] [--size base]

Every row is a row of a recipe (reproduce-*): its steps are kept under the root and are not computed twice, so the same
command goes on where it was killed. One seed of every table comes first, then the others. After each table the report
is written anew: report.md, results.json and pictures in --out; rows that are not there yet say so. --data: the folder
of the H&M articles; without it their tables are left out. --only-report: from what is done, computing nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reproduce_figures import figure, figure_steps
from reproduce_report import report_text
from reproduce_results import part_sizes, table_results
from reproduce_rows import Bench, open_bench
from reproduce_spec import Spec, load_spec

from sidray.cluster import prepare_environment, ray_cluster
from sidray.errors import UserError
from sidray.steps import Step, in_order

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "jobs" / "bench" / "results" / "reproduce"
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
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "faiss-cpu", "faiss-gpu-cu12")
Benches = dict[str, dict[str, Bench]]


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def open_benches(size: str, root: str, data: str) -> Benches:
    """system -> data set -> its rows; data sets that are not there are left out."""
    benches: Benches = {}
    for system, recipes in RECIPES[size].items():
        there = {name: recipe for name, recipe in recipes.items() if name != "hm" or data}
        overrides = {name: [f"runs.root={root}"] + [f"data.folder={data}"] * (name == "hm") for name in there}
        benches[system] = {name: open_bench(recipe, overrides[name], say) for name, recipe in there.items()}
    return benches


def compute(spec: Spec, benches: Benches, tables: list[str], seeds: int, out: Path) -> None:
    """Seed by seed and table by table; the report after each."""
    for seed in range(seeds):
        for name in tables:
            table = spec.tables[name]
            for data, bench in benches[table.system].items():
                say(f"{name} on {data}, seed {seed + 1} of {seeds}")
                for row in table.rows.values():
                    _attempt(bench, row.ours, partial(bench.compute, row.ours, seed))
                write(spec, benches, seeds, out)
        if seed == 0:
            _compute_figures(spec, benches, tables)
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


def _compute_figures(spec: Spec, benches: Benches, tables: list[str]) -> None:
    """Those of the systems that the tables are of."""
    systems = {spec.tables[name].system for name in tables}
    for name, each in spec.figures.items():
        for bench in benches[each.system].values() if each.system in systems else ():
            for step in figure_steps(name, bench):
                _attempt(bench, each.title, partial(bench.store.ensure, step))


def write(spec: Spec, benches: Benches, seeds: int, out: Path) -> None:
    """report.md, results.json and the figures, of what is done."""
    out.mkdir(parents=True, exist_ok=True)
    results = {**made_with(seeds), "tables": {}, "figures": {}}
    steps: dict[str, float] = {}
    for name, table in spec.tables.items():
        for data, bench in benches[table.system].items():
            if not _has_data(bench):
                continue
            found = table_results(table, spec.systems[table.system], bench, seeds)
            found["sizes"] = part_sizes(table.parts, bench)
            results["tables"].setdefault(name, {})[data] = found
            for row in found["rows"].values():
                steps |= _seconds(bench, row["ours"], seeds) if "ours" in row else {}
    for name, each in spec.figures.items():
        for data, bench in benches[each.system].items():
            if (drawn := figure(name, bench, out / f"{name}-{data}.png")) is not None:
                results["figures"].setdefault(name, {})[data] = drawn
    results["wall_s"] = round(sum(steps.values()), 1)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report_text(spec, results))


def _has_data(bench: Bench) -> bool:
    """Whether its clicks or pairs are in the store."""
    graph = bench.report.graphs[bench.report.recipe.label][0]
    return bench.store.manifest(graph["catalogue"]) is not None


def _seconds(bench: Bench, label: str, seeds: int) -> dict[str, float]:
    """Step -> seconds, of all that is behind a row."""
    wanted: list[Step | None] = [bench.step(label, seed) for seed in range(seeds)]
    steps = in_order({str(n): step for n, step in enumerate(wanted) if step is not None})
    manifests = {step.key: bench.store.manifest(step) for step in steps}
    return {key: float(manifest["seconds"]) for key, manifest in manifests.items() if manifest is not None}


def made_with(seeds: int) -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    cores, memory = os.cpu_count(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    machine = f"{cores} cores ({_processor()}), {memory:.0f} GiB" + "".join(f", {gpu}" for gpu in gpus)
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"machine": machine, "versions": versions, "commit": _commit(), "seeds": seeds}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the code, with a mark when files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "platform", "jobs/bench/*.py")
    return (commit or "unknown") + (" and changes" if changed else "")


def main() -> int:
    spec = load_spec()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(spec.tables), default=list(spec.tables))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="./sidray-runs")
    parser.add_argument("--data", default="")
    parser.add_argument("--size", choices=list(RECIPES), default="small")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only-report", action="store_true")
    args = parser.parse_args()
    prepare_environment()
    benches = open_benches(args.size, args.root, args.data)
    if args.only_report:
        write(spec, benches, args.seeds, args.out)
        return 0
    with ray_cluster():
        compute(spec, benches, args.tables, args.seeds, args.out)
    failed = {label: why for each in benches.values() for bench in each.values() for label, why in bench.failed.items()}
    say(f"report: {args.out / 'report.md'}" + "".join(f"\n  {label} failed: {why}" for label, why in failed.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
