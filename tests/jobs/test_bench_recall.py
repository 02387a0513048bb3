"""The bench of recall, small: run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--items", "9000", "--subset", "4000", "--partitions", "30", "--queries", "40", "--dimension", "16"]


def run(folder: Path, rivals: str) -> dict[str, dict[str, dict[str, float]]]:
    command = [sys.executable, "jobs/bench/recall.py", *SMALL, "--rivals", rivals, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    line = json.loads(done.stdout)
    assert line["all"]["sidray"]["recall@10"] == 1
    assert line["all"]["sidray"]["queries"] == 40
    assert line["all"]["sidray"]["files but items / raw"] > 1
    return dict(line)


def test_faiss_beside_ours(tmp_path: Path) -> None:
    line = run(tmp_path, "flat,ivf")
    assert line["all"]["flat"]["recall@10"] == 1
    assert line["all"]["ivf"]["recall@10"] > 0.97
    assert "subset" not in line


@pytest.mark.bench
def test_every_rival(tmp_path: Path) -> None:
    for module in ("hnswlib", "usearch", "lancedb", "pymilvus"):
        pytest.importorskip(module)
    names = ["hnswlib", "usearch", "usearch-each", "lancedb", "lancedb-flat", "milvus"]
    line = run(tmp_path, ",".join(names))
    assert min(line["subset"][name]["recall@10"] for name in names) > 0.97
