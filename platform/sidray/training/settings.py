"""The training sections of a recipe: how workers run, and what a stage is. Light: no torch here."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from sidray.config import Settings
from sidray.models.settings import Precision

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
TaskName = Literal[
    "query2text", "image2text", "query2image", "query2item", "query2item_hard", "doc2docid", "causal", "causal_sids"
]
NoteTaskName = Literal["note2note", "note2note_visual", "omni"]
NOTE_TASKS = frozenset(get_args(NoteTaskName))
Part = Literal["text", "image", "connector", "mlp", "sids"]


class TrainingSettings(Settings):
    """Ray Train workers and the DeepSpeed engine in each. `threads` are torch's per worker (0 = its CPUs, at least 1).
    `wait_s`: how long workers may wait for nodes that are still joining; minutes, where an autoscaler makes them.
    `offload`, with zero_stage 3: what lies in the memory of the host in place of the GPU's: the "optimizer" (master
    weights, moments, gradients: its step runs on CPUs), or the "parameters", too, which come layer by layer.

    `min_workers`: with fewer than `workers`, but at least so many, training goes on when nodes leave, and every
    `resize_s` it looks for nodes to grow onto (0: the number of workers is fixed). `keep_checkpoints`: how many of the
    newest stay. `checkpoint_every`: steps between two checkpoints, beside those at validations (0: none).

    These do not change what is computed beyond rounding, except `precision`."""

    workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    threads: Annotated[int, Field(ge=0)] = 0
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    precision: Precision = "fp32"
    clip: Annotated[float, Field(gt=0)] = 1.0
    chunk: Annotated[int, Field(ge=0)] = 0
    wait_s: Annotated[float, Field(ge=0)] = 20.0
    max_failures: Annotated[int, Field(ge=0)] = 2
    min_workers: Annotated[int, Field(ge=0)] = 0
    resize_s: Annotated[float, Field(gt=0)] = 60.0
    keep_checkpoints: Positive = 2
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    valid_rows: Positive = 1024

    @model_validator(mode="after")
    def _can_shrink(self) -> TrainingSettings:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self

    @model_validator(mode="after")
    def _can_offload(self) -> TrainingSettings:
        if self.offload != "none" and self.zero_stage != 3:
            raise ValueError(f"offload={self.offload} needs zero_stage=3, and it is {self.zero_stage}")
        return self

    @property
    def fewest(self) -> int:
        """With how many workers training still goes on."""
        return self.min_workers or self.workers

    @property
    def batch_unit(self) -> int:
        """What a global batch is a multiple of: most and fewest workers get equal shares of it."""
        return math.lcm(self.workers, self.fewest)


class StageSettings(Settings):
    """A stage: weighted tasks, what is trainable, a fresh optimiser and schedule, and its length.

    `rows`: "clicks" = every train click is a row; "items" = every train item is, with one of its train clicks drawn
    anew each epoch. `item`: what an item's vector is made of. `rates`: part -> multiple of `lr` at which it learns (1
    unless it is named). `epochs` or `steps` gives the length. `vocabulary`: over which text tokens the softmax of the
    causal tasks runs: "full" = all and the SIDs (the paper), "batch" = those that are targets somewhere in the global
    batch, as the negatives of InfoNCE are (for LMs with tied embeddings)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    tasks: Annotated[dict[TaskName | NoteTaskName, float], Field(min_length=1)]
    item: Literal["fused", "text", "sids"] = "fused"
    rows: Literal["clicks", "items"] = "clicks"
    train: list[Part] = Field(default_factory=lambda: list(get_args(Part)))
    rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    batch_size: Positive = 64
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 0
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Fraction = 0.1
    vocabulary: Literal["full", "batch"] = "full"
    tau: Annotated[float, Field(gt=0)] = 0.05
    validations: Positive = 3
    drop_text: Fraction = 0.0
    hard_negatives: Positive = 4
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> StageSettings:
        if "query2item_hard" in self.tasks and self.item != "sids":
            raise ValueError("task query2item_hard reads items as text + SIDs: set item: sids")
        if self.drop_text and self.item != "sids":
            raise ValueError("drop_text leaves an item its SIDs alone: it needs item: sids")
        if others := sorted(set(self.tasks) - NOTE_TASKS) if self.on_pairs else []:
            raise ValueError(f"task {others[0]} reads clicks or items and cannot share a stage with tasks on pairs")
        return self

    @property
    def on_pairs(self) -> bool:
        """Whether a row of a batch is a pair of related items."""
        return bool(NOTE_TASKS & set(self.tasks))

    @property
    def uses_sids(self) -> bool:
        return self.item == "sids" or any(task in {"doc2docid", "causal_sids"} for task in self.tasks)

    @property
    def uses_images(self) -> bool:
        fused = self.item == "fused" and "query2item" in self.tasks
        return fused or bool({"image2text", "query2image"} & set(self.tasks))

    @property
    def uses_negatives(self) -> bool:
        return "query2item_hard" in self.tasks
