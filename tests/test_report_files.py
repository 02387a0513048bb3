"""When a run's report is written, and when the one that is there stays."""

from __future__ import annotations

import json
from pathlib import Path

from sidray.recipe import load_recipe
from sidray.report_files import TABLE, Report
from sidray.steps import Store


def test_a_report_is_written_once_and_again_when_it_was_cut_off(tmp_path: Path) -> None:
    report, written = Report(load_recipe("smgr-debug", [])[0], {}), []

    def fill(folder: Path) -> str:
        written.append(folder)
        (folder / "results.json").write_text(json.dumps({"rows": [1]}))
        return "the table"

    def save() -> str:
        return report.save(Store(str(tmp_path)), str(tmp_path / "run"), "rows", [1], fill)

    assert [save(), save()] == ["the table"] * 2
    assert len(written) == 1
    (tmp_path / "run" / "report" / TABLE).unlink()  # a full disk, or a kill, before the last file
    assert save() == "the table"
    assert len(written) == 2
