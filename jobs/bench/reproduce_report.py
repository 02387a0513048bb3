"""report.md of a reproduction, from what results.json holds alone.

text = report_text(spec, results)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from reproduce_spec import Spec, System, Table

from sidray.evaluation.report import escaped, markdown_table

Found = Mapping[str, Any]
_HOW = (
    "Every table of the paper stands beside ours with the same rows. Our data stand for the papers', which are not "
    "public, and our models are small: compare differences between rows, not numbers. Numbers are in %; of several "
    "seeds the mean ± their standard deviation, over the seeds that all rows of a table have. p is of a paired test "
    "over the test clicks (bootstrap by query) or pairs (those with a common note are dependent), each counted with "
    "its mean over the seeds; with three seeds or more also of a paired t-test over them, as in SMGR's paper, and a "
    "difference counts when both say so. Settings were chosen on the validation split."
)


_HOLDS = re.compile(r"holds( \(.*\))?")
_NEW = {"not_run": "not computed yet"}  # a row that came after these results
_TITLES = {"smgr": "SMGR", "notellm2": "NoteLLM-2"}


def report_text(spec: Spec, results: Found) -> str:
    """The whole report. results: what reproduce.py saves as results.json."""
    parts = ["# SMGR and NoteLLM-2, reproduced", _HOW, _made(spec, results), "## In short", _summary(spec, results)]
    for name, table in spec.tables.items():
        if found := results["tables"].get(name):
            parts.append(f"## {table.title}")
            for data, each in found.items():
                parts += _table(table, spec.systems[table.system], data, each)
    for name, figure in spec.figures.items():
        if drawn := results["figures"].get(name):
            parts.append(f"## {figure.title}")
            for data, each in drawn.items():
                parts += [
                    f"![{figure.title}, {data}]({each['file']})",
                    _figure_sentence(figure.says, figure.why, data, each),
                ]
    parts += ["## What each row cost", *_costs(spec, results)]
    return "\n\n".join(parts) + "\n"


def _made(spec: Spec, results: Found) -> str:
    """What the data are; for each system and data set machines, versions and commits, and the time of all steps."""
    there = {data for each in results["made"].values() for data in each}
    lines = [f"- {data}: {text}" for data, text in spec.data.items() if data in there]
    for system, each in results["made"].items():
        for data, made in each.items():
            commits: dict[str, list[str]] = {}
            for one in made["with"]:
                versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
                commits.setdefault(f"{one['machine']} with {versions}", []).append(one["commit"])
            told = "; ".join(f"{what}, of commit {', '.join(those)}" for what, those in commits.items())
            hours = f"{made['wall_s'] / 3600:.1f} h on "
            lines.append(f"- {_TITLES[system]} on {data}: {hours}{told}")
            if lost := made.get("lost"):
                lines[-1] += f". **Its numbers are of earlier code or other data until {lost} rows are computed again**"
    return "\n".join(lines)


def _summary(spec: Spec, results: Found) -> str:
    """Claim by claim and data set by data set, whether it holds."""
    lines = []
    for name, table in spec.tables.items():
        for data, found in results["tables"].get(name, {}).items():
            lines += [
                [
                    table.title.split(":")[0],
                    data,
                    claim["says"],
                    _verdicts(claim),
                ]
                for claim in found["claims"]
                if claim["expect"] != "number"
            ]
    return markdown_table(["table", "data", "the paper's claim", "here"], lines)


def _table(table: Table, system: System, data: str, found: Found) -> list[str]:
    out = [f"### {data}"]
    for place, part in enumerate(table.parts):
        size = found["sizes"].get(part.name)
        heading = f"{part.name}, ours: {' and '.join(part.ours)}"
        if size is None:
            out.append(f"**{escaped(heading)}**: {data} has no such part.")
            continue
        lines = [_line(name, table, found["rows"].get(name, _NEW), part.name, place, system) for name in table.rows]
        columns = ["row", "seeds", *(cell for title in system.metrics for cell in _headings(title, table))]
        out += [f"**{escaped(heading)}** ({size:,} of the test split)", markdown_table(columns, lines)]
    out.append("\n".join(f"- {_sentence(claim)}" for claim in found["claims"]))
    verdicts = [test["verdict"] for claim in found["claims"] for test in claim.get("tests", ())]
    failing = any(not _HOLDS.fullmatch(verdict) for verdict in verdicts if verdict)
    if failing and data in table.why:
        out.append(f"Why: {table.why[data]}")
    return out


def _headings(title: str, table: Table) -> list[str]:
    ours, _, theirs = title.partition(" / ")
    return [ours, f"paper {theirs or ours}"] if _has_paper(table) else [ours]


def _has_paper(table: Table) -> bool:
    return any(row.paper for row in table.rows.values())


def _line(name: str, table: Table, found: Found, part: str, place: int, system: System) -> list[str]:
    paper = table.rows[name].paper[place] if table.rows[name].paper else [None] * len(system.metrics)
    theirs = ["-" if value is None else f"{value:.2f}" for value in paper]
    reason = found.get("not_run")
    ours = ["-"] * len(theirs) if reason else [_spread(found["values"][part][title]) for title in system.metrics]
    seeds = f"not run: {reason}" if reason else str(found["seeds"])
    cells = [cell for pair in zip(ours, theirs, strict=True) for cell in pair] if _has_paper(table) else ours
    return [name, seeds, *cells]


def _spread(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _verdicts(claim: Found) -> str:
    """For a cell: by metric, where there are several."""
    if "not_tested" in claim:
        return f"not tested: {claim['not_tested']}"
    tests = claim["tests"]
    return "; ".join(f"{_short(test)}: {test['verdict']}" if len(tests) > 1 else test["verdict"] for test in tests)


def _sentence(claim: Found) -> str:
    """The claim and what became of it; every number is measured."""
    if "not_tested" in claim:
        return escaped(f"The claim “{claim['says']}”: not tested, {claim['not_tested']}.")
    if claim["expect"] == "number":
        return escaped(f"{claim['says'][0].upper()}{claim['says'][1:]}. {_numbers(claim, claim['tests'])}.")
    verdicts: dict[str, list[Found]] = {}
    for test in claim["tests"]:
        verdicts.setdefault(test["verdict"], []).append(test)
    several = len(claim["tests"]) > 1
    said = []
    for verdict, tests in verdicts.items():
        at = f"At {_and([_short(test) for test in tests])} the" if several else "The"
        said.append(f"{at} claim “{claim['says']}” {verdict}. {_numbers(claim, tests)}.")
    return escaped(" ".join(said))


def _numbers(claim: Found, tests: Iterable[Found]) -> str:
    """What was measured by each metric."""
    out = []
    for each in tests:
        test, (first, second), over = each["test"], each["means"], each.get("over_seeds")
        seeds = f"; over seeds p = {over['p']:.4f}" if over else ""
        out.append(
            f"{_short(each)} of {claim['first']}: {first:.2f}, of {claim['second']}: {second:.2f}; "
            f"{test['difference']:+.2f} points ({test['low']:+.2f} to {test['high']:+.2f}), p = {test['p']:.4f}{seeds}"
        )
    return ". ".join(out)


def _short(test: Found) -> str:
    return str(test["metric"]).replace("recall", "R")


def _and(words: list[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _figure_sentence(says: str, why: Mapping[str, str], data: str, found: Found) -> str:
    sentence = f"The claim “{says}” {found['verdict']}: {found['numbers']}."
    return sentence + (f" Why: {why[data]}" if found["verdict"] != "holds" and data in why else "")


def _costs(spec: Spec, results: Found) -> Iterable[str]:
    """Of every data set: seconds of training behind a row, and the samples that each task has seen."""
    for data in dict.fromkeys(data for found in results["tables"].values() for data in found):
        rows = {
            row["ours"]: row
            for name in spec.tables
            for row in results["tables"].get(name, {}).get(data, {"rows": {}})["rows"].values()
            if row.get("train_s")
        }
        tasks = list(dict.fromkeys(task for row in rows.values() for task in row["samples"]))
        lines = [
            [label, f"{row['train_s']:.0f}", *(f"{row['samples'].get(task, 0):,}" for task in tasks)]
            for label, row in rows.items()
        ]
        if lines:
            yield f"### {data}"
            yield (
                "Seconds of wall time, the median over the seeds, whatever else the machine did; stages that rows "
                "share count for each."
            )
            yield markdown_table(["row", "training, s", *tasks], lines)
