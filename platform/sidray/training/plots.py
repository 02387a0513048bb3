"""The picture of a stage: every task's loss over the steps, and its held-out recall."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, float]]


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias of its start."""
    out, average, total = [], 0.0, 0.0
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
        left.plot(steps, _smooth(values), color=f"C{index}", label=key.removesuffix("/loss"))
    left.set(title=f"{name}: training loss", xlabel="step", ylabel="loss")
    left.legend(fontsize=8)
    shown = [key for key in validation[0] if key.endswith(("R@1", "R@10", "token accuracy"))]
    for key in shown:
        right.plot([row["step"] for row in validation], [row[key] for row in validation], marker="o", label=key)
    right.set(title=f"{name}: held-out", xlabel="step", ylim=(0, 1))
    if shown:
        right.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png")
    return out.getvalue()
