"""Tokenizers side by side: our RQ-VAE and the same autoencoder around vector-quantize-pytorch's ResidualVQ.

Vectors, widths, codebooks, batch, rate and number of epochs are the same. Equal reconstruction: the target is the worse
one of the two least held-out errors, and what counts is how long each takes to reach it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .arms import Figures, NotRunError, in_turns, run
from .setting import SCRIPTS, Setting
from .table import Figure, Row, compare

VQ = "vector-quantize-pytorch"
ITEMS, HELD_OUT, WIDTH = 20_000, 2_000, 128
SIZES = {"widths": [128, 96, 64, 32], "levels": 3, "entries": 256, "beta": 0.25, "gamma": 0.25}
SIZES |= {"epochs": 30, "batch": 256, "encode batch": 4096, "encode s": 5, "lr": 3e-3, "threads": 1}
FIGURES = [
    Figure("to target s", "s to equal reconstruction", True),
    Figure(
        "fit items/s", "fit, items/s", False, {VQ: "codebooks learn by gradient and AdamW, its own by a running mean"}
    ),
    Figure("least", "least held-out error", True),
    Figure(
        "encode items/s",
        "encode, items/s",
        False,
        {VQ: "ours computes in float64, so that a row has the same codes in any batch and on any device"},
    ),
]


def rows(setting: Setting) -> list[Row]:
    folder = setting.work / "tokenizer"
    sizes = write_vectors(folder)
    ours: list[object] = [sys.executable, SCRIPTS / "sidray_tokenizer.py", sizes]
    arms: dict[str, Callable[[], Figures]] = {
        "sidray": functools.partial(run, ours, threads=1),
        VQ: lambda: run([setting.venvs.python(VQ), SCRIPTS / "vq_fit.py", sizes], threads=1),
    }
    return compare("tokenizer", FIGURES, with_targets(in_turns(arms, setting.rounds)))


def with_targets(found: dict[str, list[Figures] | NotRunError]) -> dict[str, list[Figures] | NotRunError]:
    """The same with what `epochs`, [seconds, held-out error] after each, says of every arm."""
    ran = {name: each for name, each in found.items() if isinstance(each, list)}
    leasts = [min(error for _, error in round_["epochs"]) for each in ran.values() for round_ in each]
    target = max(leasts, default=0.0)  # none: no arm ran
    return {**found, **{name: [_figures(round_, target) for round_ in each] for name, each in ran.items()}}


def _figures(measured: Figures, target: float) -> Figures:
    epochs = measured["epochs"]
    first, last = epochs[0][0], epochs[-1][0]
    return {
        "to target s": next(seconds for seconds, error in epochs if error <= target),
        "fit items/s": ITEMS * (len(epochs) - 1) / (last - first),
        "least": min(error for _, error in epochs),
        "encode items/s": measured["encode items/s"],
    }


def write_vectors(folder: Path) -> Path:
    """train.npy [ITEMS, WIDTH] and valid.npy: unit vectors of 300 clusters in a space of 24 directions, with noise; and
    the file of sizes that both arms read."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((24, WIDTH))
    centres = rng.standard_normal((300, 24))
    count = ITEMS + HELD_OUT
    latent = centres[rng.integers(300, size=count)] + 0.5 * rng.standard_normal((count, 24))
    vectors = latent @ directions + 0.5 * rng.standard_normal((count, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    paths = {name: str(folder / f"{name}.npy") for name in ("train", "valid")}
    np.save(paths["train"], vectors[:ITEMS])
    np.save(paths["valid"], vectors[ITEMS:])
    sizes = folder / "sizes.json"
    sizes.write_text(json.dumps({**SIZES, **paths}))
    return sizes
