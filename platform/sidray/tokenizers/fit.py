"""Fits, saves and loads the tokenizers of all modalities (SMGR, eq. 8: independent codebooks for each).

    tokenizers = fit_modalities({"text": t, "image": i, "item": h}, {"item": h_valid}, TokenizerSettings())
    save_all(tokenizers, folder);  load_all(folder)["item"].encode(vectors)

When Ray is initialised each modality is a Ray task of its own, and they run side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from sidray.errors import UserError, root_user_error
from sidray.tokenizers.base import SemanticTokenizer, Vectors, read_tokenizer_file
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.rqvae import RqVaeTokenizer
from sidray.tokenizers.settings import TokenizerSettings

TOKENIZERS: dict[str, type[SemanticTokenizer]] = {"rqvae": RqVaeTokenizer, "rkmeans": RkMeansTokenizer}


def fit_modalities(
    vectors: Mapping[str, Vectors], valid: Mapping[str, Vectors], settings: TokenizerSettings
) -> dict[str, SemanticTokenizer]:
    """A fitted tokenizer per modality of `vectors` ([N, d] each, rows with a vector only); `valid` may lack some.

    Raises UserError for vectors or settings that do not fit, also when a Ray task met it."""
    for modality, rows in vectors.items():
        if settings.kind == "rqvae":
            settings.widths(modality, rows.shape[-1])  # a wrong pyramid shows before any task starts
        settings.entries_of(modality)
    if not ray.is_initialized():
        return {modality: _fit_one(modality, rows, valid.get(modality), settings) for modality, rows in vectors.items()}
    cpus, gpus = _share(len(vectors))
    task: Any = ray.remote(_fit_one)
    waiting = {
        modality: task.options(name=f"fit {modality} tokenizer", num_cpus=cpus, num_gpus=gpus).remote(
            modality, rows, valid.get(modality), settings, cpus
        )
        for modality, rows in vectors.items()
    }
    try:
        return dict(zip(waiting, ray.get(list(waiting.values())), strict=True))
    except RayTaskError as error:
        raise (root_user_error(error) or error) from error


def _fit_one(
    modality: str, vectors: Vectors, valid: Vectors | None, settings: TokenizerSettings, threads: int | None = None
) -> SemanticTokenizer:
    if threads is not None:
        torch.set_num_threads(threads)  # Ray leaves one thread per task whatever its CPUs
    tokenizer = TOKENIZERS[settings.kind](modality, settings)
    tokenizer.fit(vectors, valid)
    return tokenizer


def _share(tasks: int) -> tuple[int, float]:
    """CPUs and GPUs for each of `tasks` tasks, such that all of them fit on the largest node at once if it is free."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes: list[dict[str, float]] = [node["Resources"] for node in alive]
    cpus = max(int(node.get("CPU", 0)) for node in nodes) // tasks
    return max(1, cpus), (1 / tasks if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0)


def load_tokenizer(folder: Path) -> SemanticTokenizer:
    """The tokenizer in the folder, whatever its kind. Raises UserError when it is missing or damaged."""
    file = read_tokenizer_file(folder)
    return TOKENIZERS[file.kind].load(folder, file)


def save_all(tokenizers: Mapping[str, SemanticTokenizer], folder: Path) -> None:
    """One sub-folder per modality."""
    for modality, tokenizer in tokenizers.items():
        tokenizer.save(folder / modality)


def load_all(folder: Path) -> dict[str, SemanticTokenizer]:
    """The tokenizers that `save_all` wrote, by modality. Raises UserError when there are none."""
    found = sorted(path.parent for path in folder.glob("*/tokenizer.json"))
    if not found:
        raise UserError(f"{folder} holds no tokenizers", "give the folder that the tokenizer step wrote")
    return {path.name: load_tokenizer(path) for path in found}
