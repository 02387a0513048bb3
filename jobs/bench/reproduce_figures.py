"""The figures of a reproduction: what joint training's losses do (SMGR, figure 1), saliency (NoteLLM-2, 3 and 4).

found = figure("smgr-1a", bench, folder / "smgr-1a-hm.png")   # None while its steps are not done
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from reproduce_rows import Bench

from sidray import storage
from sidray.evaluation.report import png
from sidray.steps import Step
from sidray.training.plots import plot_saliencies, smooth
from sidray.training.record import Record
from sidray.training.saliency import RESULT as SALIENCY

Found = dict[str, Any]
FALL = 0.9  # of a loss's whole fall, when it counts as fallen
ITEM, TEXT, PICTURES = "query2item", "query2text", ("image2text", "query2image")


def figure_steps(name: str, bench: Bench) -> list[Step]:
    """What must be done before a figure can be drawn."""
    if name == "smgr-1a":
        graph = bench.graph("joint", 0)
        return [graph["stage-joint"]] if graph is not None else []
    return list(_saliencies(bench).values())


def figure(name: str, bench: Bench, path: Path) -> Found | None:
    """Draws it; its file, numbers and verdict. None while a step of it is not done."""
    steps = figure_steps(name, bench)
    if not steps or any(bench.store.manifest(step) is None for step in steps):
        return None
    found = _losses(bench, path) if name == "smgr-1a" else _saliency(bench, path)
    return {"file": path.name, "keys": [step.key for step in steps], **found}


def _losses(bench: Bench, path: Path) -> Found:
    graph = bench.graph("joint", 0)
    assert graph is not None
    history = Record.read(bench.store.output(graph["stage-joint"])).steps
    tasks = [key.removesuffix("/loss") for key in history[0] if key.endswith("/loss")]
    raw = {task: [row[f"{task}/loss"] for row in history] for task in tasks}
    path.write_bytes(_plot(raw, _recalls(bench)))
    return loss_trends(raw)


def loss_trends(raw: Mapping[str, Sequence[float]]) -> Found:
    """raw: task -> its loss of every step. `fallen`: task -> share of the steps after which FALL of its fall is done;
    `moves`: task -> correlation of its loss's changes from step to step with those of query2item's."""
    smoothed = {task: np.array(smooth(values)) for task, values in raw.items()}
    fallen = {task: _fallen(values) for task, values in smoothed.items()}
    change = {task: np.diff(values) for task, values in raw.items()}
    moves = {task: float(np.corrcoef(change[task], change[ITEM])[0, 1]) for task in raw if task != ITEM}
    nearest = max(moves, key=lambda task: moves[task])
    holds = nearest == TEXT and all(fallen[task] > fallen[TEXT] for task in PICTURES)
    numbers = (
        "correlation with query2item's changes: "
        + ", ".join(f"{task} {value:.2f}" for task, value in moves.items())
        + f"; share of the steps until {FALL:.0%} of the fall: "
        + ", ".join(f"{task} {value:.2f}" for task, value in fallen.items())
    )
    return {"fallen": fallen, "moves": moves, "numbers": numbers, "verdict": "holds" if holds else "does not hold"}


def _fallen(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    start, least = values[0], values.min()
    return float(np.argmax(values <= start - FALL * (start - least)) + 1) / len(values)


def _recalls(bench: Bench) -> dict[str, float]:
    """R@10 of joint and random, where they are done: figure 1 (b)."""
    done = [label for label in ("joint", "random") if bench.done(label, 1)]
    return {label: float(100 * bench.values(label, "recall@10", 0).mean()) for label in done}


def _plot(raw: Mapping[str, Sequence[float]], recalls: Mapping[str, float]) -> bytes:
    drawing = Figure(figsize=(9.5, 3.6), dpi=110)
    left, right = drawing.subplots(1, 2, width_ratios=[3, 1])
    for number, (task, values) in enumerate(raw.items()):
        left.plot(range(1, len(values) + 1), values, color=f"C{number}", alpha=0.25, linewidth=0.8)
        left.plot(range(1, len(values) + 1), smooth(values), color=f"C{number}", label=task)
    left.set(xlabel="step", ylabel="loss", title="(a) losses of joint training")
    left.legend(fontsize=8)
    bars = right.bar(list(recalls), list(recalls.values()), color=["C0", "C7"][: len(recalls)])
    right.bar_label(bars, fmt="%.1f")
    right.set(ylabel="R@10 (%)", title="(b) its pictures at random")
    right.margins(y=0.15)
    return png(drawing)


def _saliencies(bench: Bench) -> dict[str, Step]:
    """Those of the first seeds, by variant."""
    graphs = {label: each[0] for label, each in bench.report.graphs.items()}
    return {label: graph["saliency"] for label, graph in graphs.items() if "saliency" in graph and label in _DRAWN}


_DRAWN = ("basic method", "mICL", "late fusion", "NoteLLM-2")


def _saliency(bench: Bench, path: Path) -> Found:
    steps = _saliencies(bench)
    found = {
        label: storage.read_json(storage.join(bench.store.output(steps[label]), SALIENCY))
        for label in _DRAWN
        if label in steps
    }
    path.write_bytes(plot_saliencies({label: (each["layers"], each["relative"]) for label, each in found.items()}))
    return saliency_trend({label: each["relative"] for label, each in found.items()})


def saliency_trend(relative: Mapping[str, Mapping[str, Sequence[float]]]) -> Found:
    """relative: variant -> S_v, S_t, S_o by layer, the first one trained first. The claim is of shallow layers."""
    own, basic = relative["NoteLLM-2"]["S_v"][0], relative["basic method"]["S_v"][0]
    numbers = "S_v in the first trained layer: " + ", ".join(
        f"{label} {scores['S_v'][0]:.2f}" for label, scores in relative.items() if scores["S_v"]
    )
    one = len(relative["NoteLLM-2"]["S_v"]) < 2
    verdict = "is not tested, the last layer alone is trained" if one else "holds" if own > basic else "does not hold"
    return {"relative": dict(relative), "numbers": numbers, "verdict": verdict}
