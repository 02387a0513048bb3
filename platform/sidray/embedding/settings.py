"""The embedding section of a recipe: the actor pool that encodes a whole catalogue. Light: no torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sidray.config import Settings
from sidray.models.settings import Precision


class EmbeddingSettings(Settings):
    """`actors` encode batches of `batch_size` rows; each has `cpus` (also torch's threads) and `gpus`. `precision`: of
    LM and heads wherever vectors are made: caches of lower layers, the catalogue's vectors, the service. `shard_rows`:
    of each file that `sidray embed` writes; a killed call has those that were finished."""

    actors: Annotated[int, Field(gt=0)] = 1
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(gt=0)] = 128
    precision: Precision = "fp32"
    shard_rows: Annotated[int, Field(gt=0)] = 4096
