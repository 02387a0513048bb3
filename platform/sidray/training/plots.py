"""The pictures of a stage: every task's loss over the steps and its held-out recall; saliency scores by layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, float]]
Scores = Mapping[str, Sequence[float] | None]  # S_v, S_t, S_o by layer; None: there is no such score


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, .9 of the one before, without the bias of its start."""
    out, average, total, weight = [], 0.0, 0.0, 0.9
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(average / total)
    return out


def plot_stage(name: str, history: History, validation: History) -> bytes:
    """Left: training losses (thin: raw, thick: smoothed). Right: held-out R@1 and R@10 or token accuracy. A PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in history]
    for index, key in enumerate(key for key in history[0] if key.endswith("/loss")):
        values = [row[key] for row in history]
        left.plot(steps, values, color=f"C{index}", alpha=0.25, linewidth=0.8)
        left.plot(steps, smooth(values), color=f"C{index}", label=key.removesuffix("/loss"))
    left.set(title=f"{name}: training loss", xlabel="step", ylabel="loss")
    left.legend(fontsize=8)
    shown = [key for key in validation[0] if key.endswith(("R@1", "R@10", "token accuracy"))]
    for key in shown:
        right.plot([row["step"] for row in validation], [row[key] for row in validation], marker="o", label=key)
    right.set(title=f"{name}: held-out", xlabel="step", ylim=(0, 1))
    if shown:
        right.legend(fontsize=8)
    else:
        right.text(0.5, 0.5, "too few rows are held out", ha="center", transform=right.transAxes)
    return _png(figure)


def plot_saliencies(models: Mapping[str, tuple[Sequence[int], Scores]]) -> bytes:
    """Relative sizes of S_v, S_t and S_o by layer, of one model (figure 3 of NoteLLM-2) or of several side by side (4):
    name -> layers and relative scores. A PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(4, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(1.0 + 2.8 * columns, 0.4 + 2.6 * rows), layout="constrained")
    every = sorted({layer for layers, _ in models.values() for layer in layers})
    for number, (name, (layers, values)) in enumerate(models.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for colour, (score, sizes) in zip(("C1", "C0", "0.5"), values.items(), strict=True):
            if sizes is not None:
                axes.plot(layers, sizes, color=colour, marker="o", markersize=4, label=f"${score}$")
        axes.set(xlabel="layer", xlim=(every[0] - 0.3, every[-1] + 0.3), ylim=(0, 1))
        axes.set_title(name, fontsize=10, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.supylabel("relative saliency", fontsize=10)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png")
    return out.getvalue()
