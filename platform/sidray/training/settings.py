"""The training sections of a recipe: how workers run, and what a stage is. Light: no torch here."""

from __future__ import annotations

import hashlib
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
OwnTask = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]  # module:Class
TOWER_TASKS = frozenset(get_args(TaskName))
NOTE_TASKS = frozenset(get_args(NoteTaskName))
Part = Literal["text", "image", "connector", "mlp", "sids"]


class TrainingSettings(Settings):
    """Ray Train workers and the DeepSpeed engine in each. What is computed depends on `precision`, `clip` and
    `valid_rows`. With another number of `workers` dropout, `drop_text` and hard negatives are drawn anew, as with
    another seed, and a batch that does not divide by them is rounded down; the others change it by rounding at most."""

    workers: Positive = 1
    """Processes that train together; each gets an equal share of every batch."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray keeps for a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray keeps for a worker; 0: training on CPUs."""
    threads: Annotated[int, Field(ge=0)] = 0
    """torch's threads in a worker; 0: as many as its CPUs, at least 1."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed shards over the workers: 1 optimiser states, 2 gradients, too, 3 weights, too."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in the host's memory, with `zero_stage: 3`: `optimizer` = master weights, moments and gradients (their
    step runs on CPUs); `parameters` = these, too; each layer's come when needed."""
    precision: Precision = "fp32"
    """Of the weights and states that are computed with."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    chunk: Annotated[int, Field(ge=0)] = 0
    """Rows that an encoder reads at once, by gradient caching: less memory, more time; 0: the whole batch."""
    wait_s: Annotated[float, Field(ge=0)] = 20.0
    """Seconds that workers may wait for nodes that are still joining; minutes, where an autoscaler makes them."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often training begins again after a lost worker."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """Fewest workers with which training goes on when nodes leave; 0: their number is fixed."""
    resize_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two looks for nodes to grow onto."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two checkpoints, beside those at validations; 0: none."""
    valid_rows: Positive = 1024
    """Held-out rows that a stage validates on, at most."""

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
    """A stage: weighted tasks, what is trainable, a fresh optimiser and schedule, and its length. It starts from the
    stage before it, and its best state on validation ends it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    """Of its step, of its rows in the report, and in `stage_overrides`."""
    tasks: Annotated[dict[TaskName | NoteTaskName | OwnTask, float], Field(min_length=1)]
    """Task -> its weight in the loss; `module:Class` is a task of your own (adding-a-system.md)."""
    item: Literal["fused", "text", "sids"] = "fused"
    """What an item's vector is made of: text and picture, text alone, or text and SIDs."""
    rows: Literal["clicks", "items"] = "clicks"
    """`clicks`: every train click is a row; `items`: every train item is, with one of its train clicks drawn anew each
    epoch."""
    train: list[Part] = Field(default_factory=lambda: list(get_args(Part)))
    """The parts of the model that learn."""
    rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Part -> multiple of `lr` at which it learns; 1 unless it is named."""
    batch_size: Positive = 64
    """Rows of a batch over all workers, which are the candidates of each query in it."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Length: passes over the train rows; a fraction is possible."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Length in steps, in place of `epochs`; 0: `epochs` counts."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate, at the end of the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises; then it falls linearly to zero."""
    vocabulary: Literal["full", "batch"] = "full"
    """Tokens of the causal tasks' softmax: `full` all and the SIDs (the paper), `batch` the targets of the global
    batch (for LMs with tied embeddings)."""
    tau: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of the contrastive tasks: cosines are divided by it."""
    validations: Positive = 3
    """How often the stage validates, evenly spread, the last time at its end."""
    drop_text: Fraction = 0.0
    """Share of the items that keep only the SIDs of their picture, as a picture query has them; with `item: sids`."""
    hard_negatives: Positive = 4
    """Of a query in a batch, with the task query2item_hard."""
    seed: int = 0
    """Of the order of the rows, dropout and what is drawn; with the stage's name, so that no two stages draw alike."""

    @model_validator(mode="after")
    def _fits(self) -> StageSettings:
        if "query2item_hard" in self.tasks and self.item != "sids":
            raise ValueError("task query2item_hard reads items as text + SIDs: set item: sids")
        if self.drop_text and self.item != "sids":
            raise ValueError("drop_text leaves an item its SIDs alone: it needs item: sids")
        if others := sorted(TOWER_TASKS & set(self.tasks)) if self.on_pairs else []:
            raise ValueError(f"task {others[0]} reads clicks or items and cannot share a stage with tasks on pairs")
        return self

    @property
    def draws(self) -> int:
        """The seed of all that the stage draws: below 2**32, of its seed and name."""
        digest = hashlib.blake2b(f"{self.seed} {self.name}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")

    @property
    def own_tasks(self) -> list[str]:
        """Those of a user's own: module:Class."""
        return [task for task in self.tasks if ":" in task]

    @property
    def on_pairs(self) -> bool:
        """Whether a shipped task reads pairs of related items. (What a task of a user's own reads is known when its
        module is imported: see module.columns_of.)"""
        return bool(NOTE_TASKS & set(self.tasks))

    @property
    def uses_sids(self) -> bool:
        """Whether items or a shipped task need SIDs."""
        return self.item == "sids" or bool({"doc2docid", "causal_sids", "query2item_hard"} & set(self.tasks))

    @property
    def uses_images(self) -> bool:
        """Whether a shipped task reads pictures."""
        fused = self.item == "fused" and "query2item" in self.tasks
        return fused or bool({"image2text", "query2image"} & set(self.tasks))
