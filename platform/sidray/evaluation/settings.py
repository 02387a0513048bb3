"""The `evaluation:` section of a recipe. Imports nothing heavy.

evaluation: {split: valid, high_frequency: 20}
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sidray.config import Settings


class EvaluationSettings(Settings):
    """What is reported, and on which clicks; the ks are the paper's (Recall@1/5/10/20, NDCG@5/10/20)."""

    split: Literal["valid", "test"] = "test"  # choose settings on valid, report test
    high_frequency: int = Field(100, ge=0)  # queries with more clicks than this have a row (SMGR section 5.1)
    after: dict[str, Literal["vector", "text", "image"]] = Field(
        default_factory=dict
    )  # stages to evaluate too, and how
    gallery_queries: int = Field(12, ge=0)
    gallery_k: int = Field(5, ge=1, le=100)
