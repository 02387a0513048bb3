"""`sidray show RUN`: what the run is made of, how long and how large each step is, and its table."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from sidray import storage
from sidray.finished import RunFolder
from sidray.report_files import TABLE
from sidray.steps import brief


def show(uri: str) -> str:
    """Plain text: the steps of every variant (shared ones once) and the result table."""
    run = RunFolder.open(uri)
    out = io.StringIO()
    console = Console(file=out, width=120)
    console.print(_steps(run))
    table = storage.join(run.uri, "report", TABLE)
    if storage.exists(table):
        console.print(storage.read_bytes(table).decode(), markup=False, highlight=False)
    console.print(f"report: {run.uri}/report/report.md", markup=False, highlight=False)
    return out.getvalue()


def _steps(run: RunFolder) -> Table:
    table = Table(title=f"steps of {run.uri}", title_justify="left")
    for name in ("variant", "role", "step", "seconds", "MiB", "summary"):
        table.add_column(name, justify="right" if name in {"seconds", "MiB"} else "left", overflow="fold")
    seen: set[str] = set()
    for label, steps in storage.read_json(storage.join(run.uri, "steps.json")).items():
        for role, folder in steps.items():
            uri = storage.join(run.root, "steps", folder, "manifest.json")
            if folder in seen:
                continue
            seen.add(folder)
            if not storage.exists(uri):
                table.add_row(label, role, folder, "", "", "not done")
                continue
            manifest = storage.read_json(uri)
            seconds, mebibytes = f"{manifest['seconds']:.1f}", f"{manifest['bytes'] / 2**20:.1f}"
            table.add_row(label, role, folder, seconds, mebibytes, brief(manifest["summary"]))
    return table
