"""The `evaluation:` section of a recipe. Imports nothing heavy.

evaluation: {split: valid, high_frequency: 20}
evaluation: {short: 0.33, recall_at: [10, 30, 100]}  # of pairs
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from sidray.config import Settings


def _ascending(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError("the numbers must ascend")
    return values


Ks = Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_ascending)]


class EvaluationSettings(Settings):
    """What is reported, and on which clicks or pairs. The ks of clicks are SMGR's (Recall@1/5/10/20, NDCG@5/10/20)."""

    split: Literal["valid", "test"] = "test"
    """What is reported: choose settings on `valid`, report `test`."""
    high_frequency: int = Field(100, ge=0)
    """Queries with more clicks than this have a row of their own (SMGR section 5.1)."""
    after: dict[str, Literal["vector", "text", "image"]] = Field(default_factory=dict)
    """Stage -> with which of its representations it is evaluated, too."""
    gallery_queries: int = Field(12, ge=0)
    """Queries that report/gallery.html shows."""
    gallery_k: int = Field(5, ge=1, le=100)
    """Hits that it shows of each."""
    short: float = Field(0.1, gt=0, le=0.5)
    """Share of notes that count as short, and as long (NoteLLM-2 section 2.3)."""
    recall_at: Ks = Field([10, 30, 100])
    """The ks of Recall of pairs, among the items of the split's pairs."""
    given: list[Literal["image", "text"]] = Field([])
    """An MLRM is evaluated also when it is shown this alone (NoteLLM-2, table 3)."""
    tables: dict[str, list[str]] = Field(default_factory=dict)
    """Of pairs: title of a table -> its rows; empty: one table of all."""
    zero_shot: bool = False
    """Whether the untrained LM and vision encoder have rows beside an MLRM (NoteLLM-2, appendix D)."""
    recall_at_all: Ks = Field([10, 100])
    """The ks of Recall of pairs, among all items that occur in clicks or pairs."""
    saliency: bool = False
    """Whether to measure what flows to an MLRM's compressed word, by layer (NoteLLM-2 sections 2.5 and 4.2)."""
    saliency_notes: int = Field(512, gt=0)
    """Notes of train pairs that saliency is measured on; the paper: 10,000."""
