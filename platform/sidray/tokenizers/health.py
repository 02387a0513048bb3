"""Are the semantic IDs any good? Utilisation, perplexity, dead codes, collisions and reconstruction of each tokenizer.

    report = health({"item": tokenizer}, {"item": vectors})
    check(report, settings);  plot_health(report, Path("health.png"))

The report is plain JSON: {modality: {items, entries, levels: [{...} per level], collisions: {...}}}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidray.errors import UserError
from sidray.tokenizers.base import BATCH, SemanticTokenizer, Vectors
from sidray.tokenizers.settings import TokenizerSettings

Report = dict[str, Any]


def health(tokenizers: Mapping[str, SemanticTokenizer], vectors: Mapping[str, Vectors]) -> Report:
    """The report of every tokenizer on its modality's vectors [N, d]."""
    return {modality: measure(tokenizer, vectors[modality]) for modality, tokenizer in tokenizers.items()}


def measure(tokenizer: SemanticTokenizer, vectors: Vectors) -> Report:
    """One modality's report.

    Per level l: utilisation (share of codes that some item has), perplexity (exp of the entropy in nats; `entries` at
    best), dead_codes, and relative_error: the sum of ||h - h_l||^2 over that of ||h - mean||^2, with h_l the
    reconstruction from the first l codes (0 = exact, 1 = no better than the mean)."""
    codes = tokenizer.encode(vectors)
    errors = _relative_errors(tokenizer, vectors, codes)
    levels = []
    for level in range(tokenizer.levels):
        counts = np.bincount(codes[:, level], minlength=tokenizer.entries)
        share = counts[counts > 0] / len(codes)
        levels.append(
            {
                "level": level + 1,
                "utilisation": float((counts > 0).mean()),
                "perplexity": float(np.exp(-(share * np.log(share)).sum())),
                "dead_codes": int((counts == 0).sum()),
                "relative_error": errors[level],
            }
        )
    return {"items": len(codes), "entries": tokenizer.entries, "levels": levels, "collisions": collisions(codes)}


def collisions(codes: npt.NDArray[np.int32]) -> dict[str, float | int]:
    """Of rows [N, columns]: how many distinct ones, the share of rows that another row equals, the largest group.

    Give it a vocabulary's `token_ids` to see how well all modalities together tell items apart."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shared = int(counts[counts > 1].sum())
    return {"distinct": len(counts), "shared_share": shared / len(codes), "largest_group": int(counts.max())}


def _relative_errors(tokenizer: SemanticTokenizer, vectors: Vectors, codes: npt.NDArray[np.int32]) -> list[float]:
    starts = range(0, len(vectors), BATCH)
    mean = sum((np.sum(vectors[s : s + BATCH], 0, dtype=np.float64) for s in starts), np.float64(0)) / len(vectors)
    spread = 0.0
    squared = np.zeros(tokenizer.levels)
    for start in starts:
        rows = np.asarray(vectors[start : start + BATCH], dtype=np.float64)
        spread += float(np.square(rows - mean).sum())
        for level in range(tokenizer.levels):
            found = tokenizer.decode(codes[start : start + BATCH, : level + 1])
            squared[level] += np.square(rows - found).sum()
    return [float(value) for value in (squared / spread if spread > 0 else np.zeros(tokenizer.levels))]


def check(report: Report, settings: TokenizerSettings) -> None:
    """Raises UserError for the first modality and level that uses a smaller share of its codes than
    `settings.min_utilisation`: collapsed codebooks give IDs that mean nothing."""
    for modality, found in report.items():
        for level in found["levels"]:
            if level["utilisation"] < settings.min_utilisation:
                used = found["entries"] - level["dead_codes"]
                raise UserError(
                    f"the {modality} tokenizer uses {used} of {found['entries']} codes on level {level['level']} for "
                    f"{found['items']} items: {level['utilisation']:.0%} is below tokenizer.min_utilisation "
                    f"({settings.min_utilisation:.0%})",
                    "lower tokenizer.entries or tokenizer.dead_code_after, train for more tokenizer.epochs, or try "
                    "tokenizer.kind=rkmeans; if that fails too, the vectors themselves have collapsed",
                )


def plot_health(report: Report, path: Path) -> None:
    """Writes a PNG of four panels: codes in use and perplexity per level, reconstruction error by level, collisions."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    (use, even), (error, collide) = figure.subplots(2, 2)
    deepest = max(len(found["levels"]) for found in report.values())
    levels = [f"level {level}" for level in range(1, deepest + 1)]
    _bars(use, report, levels, lambda found: [100 * level["utilisation"] for level in found["levels"]])
    _bars(even, report, levels, lambda f: [100 * level["perplexity"] / f["entries"] for level in f["levels"]])
    _bars(error, report, levels, lambda found: [100 * level["relative_error"] for level in found["levels"]])
    _bars(collide, report, ["items with a shared code", "distinct codes / items"], _collision_shares)
    use.set_title("Codes in use, % of the codebook")
    even.set_title("Perplexity, % of the codebook")
    error.set_title("Reconstruction error, % of the variance")
    collide.set_title("Collisions, % of the items")
    handles, labels = use.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(report), frameon=False)
    figure.savefig(path, dpi=110)


def _collision_shares(found: Report) -> list[float]:
    collided = found["collisions"]
    return [100 * collided["shared_share"], 100 * collided["distinct"] / found["items"]]


def _bars(axes: Axes, report: Report, groups: list[str], values: Callable[[Report], list[float]]) -> None:
    """One group of bars per entry of `groups`, one bar per modality, each with its number on top."""
    width = 0.8 / len(report)
    for index, (modality, found) in enumerate(report.items()):
        heights = values(found)
        places = np.arange(len(heights)) + (index - (len(report) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.92, label=f"{modality} ({found['items']:,} items)")
        axes.set_ylim(0, max(115.0, axes.get_ylim()[1], 1.1 * max(heights)))
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
