"""The embedding section of a recipe: the actor pool that encodes a whole catalogue. Light: no torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sidray.config import Settings
from sidray.models.settings import Precision


class EmbeddingSettings(Settings):
    """The actor pool that encodes the whole catalogue, and what `sidray embed` is given. Only `precision` changes the
    vectors."""

    actors: Annotated[int, Field(gt=0)] = 1
    """Processes that encode."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of each actor, and torch's threads in it."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each actor."""
    batch_size: Annotated[int, Field(gt=0)] = 128
    """Rows that an actor encodes at once."""
    precision: Precision = "fp32"
    """Of LM and heads wherever vectors are made: caches of lower layers, the catalogue's vectors, the service."""
    shard_rows: Annotated[int, Field(gt=0)] = 4096
    """Rows of each file that `sidray embed` writes; a killed call keeps the files that were finished."""
