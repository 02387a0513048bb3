"""What a semantic-ID tokenizer does: fit on vectors, encode to codes, reconstruct, save and load.

    codes = tokenizer.encode(vectors)   # float32 [N, d] -> int32 [N, L]; N may be millions: it works in batches

On disk a tokenizer is a folder with tokenizer.safetensors and tokenizer.json. Computations on finished tokenizers run
in float64, so that a row gets the same codes alone, in any batch, on any device (see `residual.TIE`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidray import storage
from sidray.config import Settings
from sidray.errors import UserError
from sidray.models.inference import inference_device
from sidray.tokenizers.residual import ResidualCodec
from sidray.tokenizers.settings import TokenizerSettings

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
History = list[dict[str, float]]
BATCH = 4096  # rows per step outside training
ROWS_PER_CENTROID = 256  # k-means looks at no more rows than this many per centroid


class TokenizerFile(Settings):
    """tokenizer.json"""

    kind: Literal["rqvae", "rkmeans"]
    modality: str
    width: int
    settings: TokenizerSettings
    history: list[dict[str, float]]


class SemanticTokenizer(ABC):
    """A tokenizer of one modality. `codec` is None until `fit` or `load`."""

    kind: ClassVar[Literal["rqvae", "rkmeans"]]

    def __init__(self, modality: str, settings: TokenizerSettings) -> None:
        self.modality = modality
        self.settings = settings
        self.levels = settings.levels
        self.entries = settings.entries_of(modality)
        self.codec: ResidualCodec | None = None
        self.history: History = []

    @abstractmethod
    def build(self, width: int) -> ResidualCodec:
        """An untrained codec for vectors of `width` dimensions."""

    @abstractmethod
    def fit(self, vectors: Vectors, valid: Vectors | None = None) -> History:
        """Learns from training vectors [N, d] alone; `valid` [M, d] measures (and may choose the epoch).

        Returns one dict per epoch. Raises UserError for vectors that are empty, not finite or of a wrong shape."""

    @torch.no_grad()
    def encode(self, vectors: Vectors) -> Codes:
        """Codes [N, L] of vectors [N, d]; N may be 0."""
        codes = np.empty((len(vectors), self.levels), dtype=np.int32)
        for start, batch, codec in self._batches(vectors):
            codes[start : start + len(batch)] = codec.quantise(codec.encoder(batch)).codes.cpu().numpy()
        return codes

    @torch.no_grad()
    def decode(self, codes: Codes) -> Vectors:
        """The vectors [N, d] that codes [N, L] stand for; with fewer columns than levels, by the first levels."""
        codec = self._finished()
        found = np.empty((len(codes), len(codec.mean)), dtype=np.float32)
        for start in range(0, len(codes), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(codes[start : start + BATCH])).to(codec.mean.device).long()
            vectors = codec.restore(codec.decoder(codec.look_up(batch).sum(1)))
            found[start : start + len(batch)] = vectors.cpu().numpy()
        return found

    def quantise(self, vectors: Vectors) -> Vectors:
        """The reconstruction [N, d] of vectors [N, d] from all their codes."""
        return self.decode(self.encode(vectors))

    @torch.no_grad()
    def error(self, vectors: Vectors) -> float:
        """The reconstruction term of eq. (14): mean over the rows of the squared distance, standardised scale."""
        total = 0.0
        for _, batch, codec in self._batches(vectors):
            summed = torch.stack(codec.quantise(codec.encoder(batch)).chosen).sum(0)
            total += float((batch - codec.decoder(summed)).square().sum())
        return total / len(vectors)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into `folder`, which is made."""
        codec = self._finished()
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().float().cpu().contiguous() for name, value in codec.state_dict().items()}
        save_file(state, folder / "tokenizer.safetensors")
        file = TokenizerFile(
            kind=self.kind,
            modality=self.modality,
            width=len(codec.mean),
            settings=self.settings,
            history=self.history,
        )
        storage.write_json(str(folder / "tokenizer.json"), file.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path, file: TokenizerFile) -> Self:
        """A tokenizer of this kind that `save` wrote. Raises UserError when it is damaged."""
        tokenizer = cls(file.modality, file.settings)
        codec = tokenizer.build(file.width)
        try:
            codec.load_state_dict(load_file(folder / "tokenizer.safetensors"))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{folder}/tokenizer.safetensors does not fit: {error}", "run the tokenizer step again"
            ) from error
        tokenizer.finish(codec)
        tokenizer.history = file.history
        return tokenizer

    def finish(self, codec: ResidualCodec) -> None:
        """Takes a trained codec into use: on the CPU, frozen, in float64 (its numbers stay those of float32)."""
        self.codec = codec.eval().requires_grad_(False).cpu().float().double()

    def _finished(self) -> ResidualCodec:
        if self.codec is None:
            raise RuntimeError(f"the {self.modality} tokenizer is neither fitted nor loaded")
        return self.codec.to(inference_device())

    def _batches(self, vectors: Vectors) -> Iterator[tuple[int, Tensor, ResidualCodec]]:
        """First row, standardised batch [B, d] on the codec's device, codec."""
        codec = self._finished()
        check_shape(vectors, self.modality, len(codec.mean))
        for start in range(0, len(vectors), BATCH):
            rows = finite(vectors[start : start + BATCH], self.modality, start)
            yield start, codec.standardise(torch.from_numpy(rows).to(codec.mean)), codec


def check_shape(vectors: Any, modality: str, width: int | None = None) -> None:
    """Raises UserError unless `vectors` is [N, width], or without `width`, as training data, [N > 0, d > 0]."""
    if vectors.ndim != 2 or (width is None and 0 in vectors.shape):
        raise UserError(f"the {modality} vectors have the shape {vectors.shape}", "give at least one row, [N, d]")
    if width is not None and vectors.shape[1] != width:
        raise UserError(
            f"the {modality} vectors have {vectors.shape[1]} dimensions, its tokenizer was fitted on {width}",
            "use the towers that the tokenizer was fitted with, or fit it again",
        )


def finite(rows: Vectors, modality: str, start: int) -> Vectors:
    """A float32 copy of the rows. Raises UserError naming the first that is not finite; `start` = index of rows[0]."""
    copied = np.array(rows, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(copied).all(1))
    if len(bad):
        raise UserError(
            f"the {modality} vector in row {start + int(bad[0])} is not finite",
            "leave out rows without a vector; if a tower wrote it, its training diverged: lower its learning rate",
        )
    return copied


def statistics(vectors: Vectors, modality: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension, [d] and [d]; the deviation of a constant dimension is 1."""
    starts = range(0, len(vectors), BATCH)
    chunks = (finite(vectors[start : start + BATCH], modality, start).astype(np.float64) for start in starts)
    mean = sum((chunk.sum(0) for chunk in chunks), np.zeros(vectors.shape[1])) / len(vectors)
    squares = (np.square(vectors[start : start + BATCH] - mean).sum(0) for start in starts)
    std = np.sqrt(sum(squares, np.zeros(vectors.shape[1])) / len(vectors))
    std[std <= 1e-7 * np.abs(mean)] = 1.0
    return torch.from_numpy(mean), torch.from_numpy(std)


def sample(vectors: Vectors, entries: int, seed: int) -> Vectors:
    """The rows that k-means looks at: all, or a seeded sample without replacement."""
    limit = ROWS_PER_CENTROID * entries
    if len(vectors) <= limit:
        return np.array(vectors, dtype=np.float32)
    chosen = np.random.default_rng(seed).choice(len(vectors), limit, replace=False)
    return np.array(vectors[np.sort(chosen)], dtype=np.float32)


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """tokenizer.json of the folder. Raises UserError when it is missing or damaged."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no tokenizer.json", "give the folder that the tokenizer step wrote")
    try:
        return TokenizerFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error}", "run the tokenizer step again") from error
