"""Batch embedding side by side: `sidray embed` with an actor for each core and sentence-transformers' `encode` with a
thread for each, the same trained weights, texts and batch.

That both compute the same is checked: a peer's vector through our item head is our vector.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .arms import Figures, NotRunError, in_turns, run
from .finished import Finished
from .setting import SCRIPTS, THREADS, Setting
from .table import Figure, Row, compare

ST = "sentence-transformers"
BATCH, FIRST = 128, 64
STEADY = Figure(
    "items/s",
    "items/s",
    False,
    {ST: "ours reads, checks, hashes and writes every item, too, and sorts by length within a batch alone"},
)
WHOLE = Figure(
    "whole items/s", "items/s, start included", False, {ST: "Ray, its actors and the check of the table start first"}
)


def rows(setting: Setting) -> list[Row]:
    made = Finished.make(setting)
    arms = {"sidray": functools.partial(_ours, made), ST: functools.partial(_peer, setting, made)}
    found = in_turns(arms, setting.rounds)
    return compare("batch embedding", [STEADY, WHOLE], found) + _agreement(made, found)


def _ours(made: Finished) -> Figures:
    items, out = made.shop.folder / "items.parquet", made.shop.folder / "ours.npy"
    script = SCRIPTS / "sidray_embedding.py"
    return run([sys.executable, script, made.run, "--items", items, "--first", str(FIRST), "--vectors", out], threads=1)


def _peer(setting: Setting, made: Finished) -> Figures:
    folder = made.shop.folder
    given: list[object] = [
        "--encoder",
        made.exported / "text",
        "--texts",
        folder / "items.txt",
        "--vectors",
        folder / "theirs.npy",
    ]
    sizes = ["--batch", str(BATCH), "--threads", str(THREADS), "--first", str(FIRST)]
    return run([setting.venvs.python(ST), SCRIPTS / "st_encode.py", *given, *sizes], THREADS)


def _agreement(made: Finished, found: dict[str, Any]) -> list[Row]:
    """How far the peer's vectors, through MLP_I, are from ours: 1 = the same."""
    if any(isinstance(each, NotRunError) for each in found.values()):
        return []
    ours, theirs = (np.load(made.shop.folder / f"{name}.npy") for name in ("ours", "theirs"))
    least = float((ours * item_head(made.exported, theirs)).sum(1).min())
    return [
        Row(
            "batch embedding",
            "least cosine of its vector, through our head, and ours",
            ST,
            1.0,
            least,
            note="1 = the same",
        )
    ]


def item_head(exported: Path, hidden: Any) -> Any:
    """MLP_I of one layer on pooled states [n, d], of unit length: what an item's vector is made of."""
    import torch
    from safetensors.torch import load_file

    state = load_file(exported / "towers.safetensors")
    states = torch.nn.functional.normalize(torch.from_numpy(hidden), dim=-1) * hidden.shape[1] ** 0.5
    vectors = states @ state["mlp_i.0.weight"].T + state["mlp_i.0.bias"]
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()
