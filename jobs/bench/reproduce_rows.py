"""The rows of a recipe: which steps stand behind each, what they found click by click, and tests between them.

bench = open_bench("reproduce-hm", ["data.folder=HM"], print)
bench.compute("tiger", 0);  bench.values("tiger", "recall@10", 0)   # of each click: [n]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.evaluation.metrics import Ints, Values
from sidray.evaluation.pairs import Pairs, pair_recall, pair_subsets, saved_ranks
from sidray.evaluation.protocol import HIGH_FREQUENCY, OTHER, POPULAR, load_ranks, query_frequency, subsets
from sidray.evaluation.randomisation import randomisation
from sidray.evaluation.run import RESULT
from sidray.evaluation.significance import Comparison, click_values, compare_clicks
from sidray.graph_base import Graph
from sidray.recipe import load_recipe
from sidray.report_clicks import ClicksReport
from sidray.report_pairs import PairsReport
from sidray.run import seeded_graphs
from sidray.steps import Step, Store, in_order

BASELINES = ("popularity", "BM25")
CLICK_PARTS = {"popular": POPULAR, "other": OTHER, "high-frequency": HIGH_FREQUENCY}
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Bench:
    """A recipe's rows in a store. `failed`: row -> why it could not be computed, filled by `compute`'s caller."""

    report: ClicksReport | PairsReport
    store: Store
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def on_pairs(self) -> bool:
        return isinstance(self.report, PairsReport)

    @cached_property
    def rows(self) -> dict[str, Sequence[Step]]:
        """Row -> its evaluation step of every seed."""
        if isinstance(self.report, PairsReport):
            return {label: steps for label, (_, steps) in self.report.rows.items()}
        return dict(self.report.rows)

    def graph(self, label: str, seed: int) -> Graph | None:
        """The graph of a variant; None when no variant has this name."""
        graphs = self.report.graphs.get(label, ())
        return graphs[seed] if seed < len(graphs) else None

    def step(self, label: str, seed: int) -> Step | None:
        """What must be done for a row; None when the row has fewer seeds, or is none of the recipe's."""
        if label in BASELINES:
            return self.report.baselines if seed == 0 else None
        steps = self.rows.get(label, ())
        return steps[seed] if seed < len(steps) else None

    def compute(self, label: str, seed: int) -> None:
        """Whatever of the row is not done yet."""
        if (step := self.step(label, seed)) is not None:
            self.store.ensure(step)

    def done(self, label: str, seeds: int) -> list[int]:
        """Of the first `seeds` seeds those that are done, by number."""
        steps = {seed: self.step(label, seed) for seed in range(seeds)}
        return [seed for seed, step in steps.items() if step is not None and self.store.manifest(step) is not None]

    def values(self, label: str, metric: str, seed: int) -> Values:
        """The metric of every click or pair: [n]."""
        step = self.step(label, seed)
        assert step is not None
        ranks = _ranks(storage.join(self.store.output(step), label if label in BASELINES else RESULT))
        if self.on_pairs:
            return pair_recall(saved_ranks(ranks), metric)
        return click_values(ranks, metric)

    def compare(self, first: Values, second: Values) -> Comparison:
        """Two rows over the same clicks or pairs: resampled by query, or randomised by query note."""
        if self.on_pairs:
            return randomisation(first, second, self._queries)
        return compare_clicks(first, second, self._queries)

    def mask(self, parts: Sequence[str]) -> Mask | None:
        """Of the clicks or pairs that are in all of these subsets; None when one is empty or has no meaning here."""
        masks = [self._masks[name] for name in parts if name in self._masks]
        inside: Mask = np.logical_and.reduce(masks) if len(masks) == len(parts) else np.zeros(1, bool)
        return inside if inside.any() else None

    @cached_property
    def _catalogue(self) -> Catalogue:
        graph = self.report.graphs[self.report.recipe.label][0]
        return Catalogue.open(self.store.output(graph["catalogue"]))

    @cached_property
    def _queries(self) -> Ints:
        split = self.report.recipe.evaluation.split
        if self.on_pairs:
            return Pairs.of(self._catalogue, split).queries
        return np.asarray(self._catalogue.clicks(split)["query_id"].to_numpy())

    @cached_property
    def _masks(self) -> Mapping[str, Mask]:
        settings = self.report.recipe.evaluation
        if self.on_pairs:
            pairs = Pairs.of(self._catalogue, settings.split)
            return {name: subset.mask for name, subset in pair_subsets(pairs, settings.short).items()}
        clicks = self._catalogue.clicks(settings.split)
        found = subsets(clicks, query_frequency(clicks, self._catalogue.clicks()), settings.high_frequency)
        masks = {name: found[part].mask for name, part in CLICK_PARTS.items() if part in found}
        return {"all": np.ones(clicks.num_rows, bool), **masks}

    def costs(self, label: str, seed: int) -> dict[str, Any]:
        """Of the training behind a row: seconds, and samples by task. Shared stages count for every row."""
        step = self.step(label, seed)
        seconds, samples = 0.0, dict[str, int]()
        for needed in in_order({"": step}) if step is not None else []:
            manifest = self.store.manifest(needed)
            if manifest is None or "stage" not in manifest["config"]:
                continue
            stage = manifest["config"]["stage"]
            seconds += manifest["seconds"]
            for task in stage["tasks"]:
                samples[task] = samples.get(task, 0) + manifest["summary"]["steps"] * stage["batch_size"]
        return {"train_s": round(seconds, 1), "samples": samples}


@lru_cache(maxsize=512)
def _ranks(uri: str) -> pa.Table:
    return load_ranks(f"{uri}.parquet")


def open_bench(recipe: str, overrides: list[str], say: Callable[[str], None]) -> Bench:
    """The rows of a recipe and its variants."""
    loaded, variants, _ = load_recipe(recipe, overrides)
    graphs = seeded_graphs({loaded.label: loaded, **variants})
    report = PairsReport(loaded, graphs) if loaded.model.note is not None else ClicksReport(loaded, graphs)
    return Bench(report, Store(loaded.runs.root, say))
