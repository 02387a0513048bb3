"""sidray beside its peers, on this machine, in one table: what `make bench` runs.

    python jobs/bench/side_by_side.py [--only training embedding server tokenizer recall start] [--root FOLDER]

Each peer is installed from PyPI in an environment of its own below --root, which is used again. Arms take turns, with
the same data, weights, batch and threads; a ratio above 1 says that sidray is ahead. A peer that does not install or
run has a row that says why. Parts that ran are stored in jobs/bench/results/bench/, the table is made of all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peers import embedding, first_search, recall, server, tokenizer, training
from peers.results import Part, Results
from peers.setting import Setting
from peers.table import Row
from peers.venvs import Venvs

HERE = Path(__file__).resolve().parent
PARTS: dict[str, Callable[[Setting], list[Row]]] = {
    "training": training.rows,
    "embedding": embedding.rows,
    "server": server.rows,
    "tokenizer": tokenizer.rows,
    "recall": recall.rows,
    "start": first_search.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--root", type=Path, default=HERE.parents[1] / "sidray-runs" / "bench")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "bench")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    os.environ |= {"RAY_worker_niceness": "0"}  # Ray would run its workers at a lower priority than the peers have
    root = given.root.resolve()
    (root / "work").mkdir(parents=True, exist_ok=True)
    setting, results = Setting(Venvs(root / "venvs"), root / "work", given.rounds), Results(given.results)
    for name in given.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.perf_counter()
        results.add(name, Part.of(PARTS[name](setting), time.perf_counter() - started))
    print(results.table(list(PARTS)))


if __name__ == "__main__":
    main()
