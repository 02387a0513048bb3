"""Which rows a stage trains on, in which order, and where it validates: all a pure function of recipe and catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidray.data.catalogue import Catalogue, Rows
from sidray.data.plan import EpochPlan, one_click_per_item
from sidray.errors import UserError
from sidray.tasks.base import Rows as RowKind
from sidray.training.module import rows_of
from sidray.training.settings import StageSettings


@dataclass(frozen=True)
class Schedule:
    """The steps of a stage over an epoch plan; `positions` are click, item or pair rows (`rows`). The plan is the same
    for any number of `workers` that divides the batch; `unit`: what the batch is a multiple of (0: of the workers)."""

    stage: StageSettings
    catalogue: Catalogue
    workers: int
    unit: int = 0

    @property
    def rows(self) -> RowKind:
        return rows_of(self.stage)

    @property
    def batch_size(self) -> int:
        """Global; never more than the rows there are, and a multiple of the unit."""
        fits, unit = min(self.stage.batch_size, self.n_rows), self.unit or self.workers
        size = fits - fits % unit
        if size == 0:
            raise UserError(
                f"stage {self.stage.name}: a batch of {fits} rows ({self.n_rows} are there, batch_size is "
                f"{self.stage.batch_size}) is no multiple of {unit}: its workers would get unequal shares",
                "fewer training.workers; training.min_workers should divide it",
            )
        return size

    @property
    def n_rows(self) -> int:
        if self.rows == "pairs":
            return int(self.catalogue.pairs("train").num_rows)
        per_item = self.rows == "items" or self.stage.rows == "items"
        return len(self.catalogue.train_items) if per_item else self.catalogue.clicks("train").num_rows

    def plan(self) -> EpochPlan:
        epochs = self.stage.epochs
        if self.stage.steps:
            epochs = self.stage.steps * self.batch_size / self.n_rows
        return EpochPlan(self.n_rows, self.batch_size, max(1, int(np.ceil(epochs))), self.stage.draws)

    @property
    def steps(self) -> int:
        """Steps of the whole stage: `steps`, or `epochs` (a fraction is possible) of the train rows."""
        return self.stage.steps or max(1, int(np.ceil(self.stage.epochs * self.n_rows / self.batch_size)))

    def positions(self, start: int, rank: int) -> Rows:
        """[steps - start, batch_size / workers] rows of this rank from step `start` on."""
        plan = self.plan()
        index = plan.slice(start, rank, self.workers)[: self.steps - start]
        if self.rows == "items":
            return self.catalogue.train_items[index]
        if self.rows == "pairs":
            return np.asarray(self.catalogue.pairs("train")["pair_row"].to_numpy(), np.int64)[index]
        if self.stage.rows == "items":
            epochs = plan.epochs_of(start, rank, self.workers)[: self.steps - start]
            offsets, clicks = self.catalogue.train_clicks_of_item()
            return one_click_per_item(index, epochs, offsets, clicks, self.stage.draws)
        train = self.catalogue.clicks("train")["click_row"].to_numpy()
        return np.asarray(train, np.int64)[index]

    def validation_steps(self) -> list[int]:
        """After which steps (counted from 1) the stage validates and checkpoints: evenly, the last one at the end."""
        count = min(self.stage.validations, self.steps)
        return sorted({round(self.steps * (i + 1) / count) for i in range(count)})

    def validation_rows(self, limit: int, rank: int) -> Rows:
        """This rank's share of at most `limit` validation rows, the same number on every rank (a seeded sample). Items
        are those without a train click."""
        if self.rows == "items":
            rows = self.catalogue.held_out_items
        else:
            pairs = self.rows == "pairs"
            table = self.catalogue.pairs("valid") if pairs else self.catalogue.clicks("valid")
            rows = np.unique(table["pair_row" if pairs else "click_row"].to_numpy().astype(np.int64))
        rows = np.random.default_rng(0).permutation(rows)[:limit]
        share = len(rows) // self.workers
        return rows[rank * share : (rank + 1) * share]
