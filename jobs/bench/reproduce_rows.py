"""The rows of a recipe: which steps stand behind each, what they found click by click, and tests between them.

bench = open_bench("reproduce-hm", ["data.folder=HM"], Kept(folder, "smgr-hm"), print)
bench.compute("tiger", 0);  bench.values("tiger", "recall@10", 0)   # of each click: [n]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from peers.machine import commit, machine, versions
from reproduce_kept import Kept, KeptRow

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.evaluation.metrics import Ints, Ranks, Values, ndcg, recall
from sidray.evaluation.pairs import Pairs, pair_subsets
from sidray.evaluation.protocol import HIGH_FREQUENCY, OTHER, POPULAR, load_ranks, query_frequency, subsets
from sidray.evaluation.run import RESULT
from sidray.evaluation.significance import Comparison, compare_clicks, compare_pairs
from sidray.graph_base import Graph
from sidray.recipe import load_recipe
from sidray.report_clicks import ClicksReport
from sidray.report_pairs import ZERO_SHOT, PairsReport
from sidray.run import seeded_graphs
from sidray.steps import Step, Store, in_order

PACKAGES = ("torch", "ray", "deepspeed", "transformers", "faiss-cpu", "faiss-gpu-cu12")
BASELINES = ("popularity", "BM25")
SEEDLESS = (*BASELINES, *ZERO_SHOT)  # rows that every seed shares
METRICS = {"recall": recall, "ndcg": ndcg}
CLICK_PARTS = {"popular": POPULAR, "other": OTHER, "high-frequency": HIGH_FREQUENCY}
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Bench:
    """A recipe's rows, computed in a store, and what is kept of them. `rows`: row -> its evaluation step of every seed;
    `keys`: what these are kept under; `failed`: row -> why it could not be computed, filled by `compute`'s caller."""

    report: ClicksReport | PairsReport
    rows: Mapping[str, Sequence[Step]]
    keys: Mapping[str, Sequence[str]]
    store: Store
    kept: Kept
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def on_pairs(self) -> bool:
        return isinstance(self.report, PairsReport)

    def graph(self, label: str, seed: int) -> Graph | None:
        """The graph of a variant; None when no variant has this name."""
        graphs = self.report.graphs.get(label, ())
        return graphs[seed] if seed < len(graphs) else None

    def step(self, label: str, seed: int) -> Step | None:
        """What must be done for a row; None when the row has fewer seeds, or is none of the recipe's."""
        steps = self.rows.get(label, ())
        return steps[seed] if seed < len(steps) else None

    @property
    def catalogue(self) -> Step:
        """What must be done before anything can be asked of the rows."""
        return self.report.graphs[self.report.recipe.label][0]["catalogue"]

    def compute(self, label: str, seed: int, missing: bool = False) -> None:
        """Whatever of the row is not in the store yet; missing: only of a row that is not kept."""
        step = self.step(label, seed)
        if step is not None and not (missing and self._row(label, seed)):
            self.store.ensure(step)
            self._keep(label, seed, step)

    def keep(self, labels: Iterable[str], seeds: int) -> None:
        """Those of the rows that the store has, of the first `seeds` seeds, and that are not kept."""
        for label in labels:
            for seed in range(seeds):
                step = self.step(label, seed)
                if step is not None and not self._row(label, seed) and self.store.manifest(step) is not None:
                    self._keep(label, seed, step)

    def _keep(self, label: str, seed: int, step: Step) -> None:
        name = label if label in BASELINES else RESULT
        table = load_ranks(storage.join(self.store.output(step), f"{name}.parquet"))
        ranks = Ranks(table["greater"].to_numpy(), table["equal"].to_numpy())
        about = {"key": self._key(label, seed), **self._costs(step), "made": _made()}
        self.kept.add(label, seed, ranks, about)

    def done(self, label: str, seeds: int) -> list[int]:
        """Of the first `seeds` seeds those that are kept, by number."""
        return [seed for seed in range(seeds) if self._row(label, seed)]

    def values(self, label: str, metric: str, seed: int) -> Values:
        """The metric of every click or pair: [n]."""
        row = self._row(label, seed)
        assert row is not None
        name, _, k = metric.partition("@")
        return METRICS[name](*row.ranks, int(k))

    def about(self, label: str, seed: int) -> Mapping[str, Any]:
        """What a row that is done cost and was made with."""
        row = self._row(label, seed)
        assert row is not None
        return row.about

    def _row(self, label: str, seed: int) -> KeptRow | None:
        return None if self.step(label, seed) is None else self.kept.find(label, seed, self._key(label, seed))

    def _key(self, label: str, seed: int) -> str:
        """Of the step, wherever the data lie, and of what it was evaluated on."""
        return f"{self.keys[label][seed]}-{self._asked}"

    @cached_property
    def _asked(self) -> str:
        """Of what is trained on and asked, and of the items' titles: data elsewhere may be other data."""
        catalogue = self._catalogue
        table = catalogue.pairs("train") if self.on_pairs else catalogue.clicks("train")
        digest = sha256(self._queries.tobytes())
        for column in ("item_row", "related_row" if self.on_pairs else "query_id"):
            digest.update(table[column].to_numpy().tobytes())
        titles = catalogue.items(np.arange(catalogue.n_items), ["title"])["title"].to_pylist()
        digest.update("\n".join(titles).encode())
        return digest.hexdigest()[:8]

    def _costs(self, step: Step) -> dict[str, Any]:
        """`train_s` and `samples` by task of all training behind a row; `seconds` of every step. Shared steps count for
        every row."""
        train_s, samples, seconds = 0.0, dict[str, int](), dict[str, float]()
        for needed in in_order({"": step}):
            if (manifest := self.store.manifest(needed)) is None:
                continue
            seconds[needed.key] = manifest["seconds"]
            if "stage" in manifest["config"]:
                stage = manifest["config"]["stage"]
                train_s += manifest["seconds"]
                for task in stage["tasks"]:
                    samples[task] = samples.get(task, 0) + manifest["summary"]["steps"] * stage["batch_size"]
        return {"train_s": round(train_s, 1), "samples": samples, "seconds": seconds}

    def compare(self, first: Values, second: Values) -> Comparison:
        """Two rows over the same clicks, resampled by query, or the same pairs, dependent by common notes."""
        if self.on_pairs:
            return compare_pairs(first, second, self._pairs.queries, self._pairs.targets)
        return compare_clicks(first, second, self._queries)

    def mask(self, parts: Sequence[str]) -> Mask | None:
        """Of the clicks or pairs that are in all of these subsets; None when one is empty or has no meaning here."""
        masks = [self._masks[name] for name in parts if name in self._masks]
        inside: Mask = np.logical_and.reduce(masks) if len(masks) == len(parts) else np.zeros(1, bool)
        return inside if inside.any() else None

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue.open(self.store.output(self.catalogue))

    @cached_property
    def _pairs(self) -> Pairs:
        return Pairs.of(self._catalogue, self.report.recipe.evaluation.split)

    @cached_property
    def _queries(self) -> Ints:
        if self.on_pairs:
            return self._pairs.queries
        return np.asarray(self._catalogue.clicks(self.report.recipe.evaluation.split)["query_id"].to_numpy())

    @cached_property
    def _masks(self) -> Mapping[str, Mask]:
        settings = self.report.recipe.evaluation
        if self.on_pairs:
            return {name: subset.mask for name, subset in pair_subsets(self._pairs, settings.short).items()}
        clicks = self._catalogue.clicks(settings.split)
        found = subsets(clicks, query_frequency(clicks, self._catalogue.clicks()), settings.high_frequency)
        masks = {name: found[part].mask for name, part in CLICK_PARTS.items() if part in found}
        return {"all": np.ones(clicks.num_rows, bool), **masks}


def _made() -> dict[str, Any]:
    return {"machine": machine(), "versions": versions(PACKAGES), "commit": commit()}


def open_bench(recipe: str, overrides: list[str], kept: Kept, say: Callable[[str], None]) -> Bench:
    """The rows of a recipe and its variants."""
    report = _report(recipe, overrides)
    anywhere = _report(recipe, [*overrides, "data.folder=anywhere"]) if report.recipe.data.folder else report
    keys = {label: [step.key for step in steps] for label, steps in _rows(anywhere).items()}
    return Bench(report, _rows(report), keys, Store(report.recipe.runs.root, say), kept)


def _report(recipe: str, overrides: list[str]) -> ClicksReport | PairsReport:
    loaded, variants, _ = load_recipe(recipe, overrides)
    graphs = seeded_graphs({loaded.label: loaded, **variants})
    return PairsReport(loaded, graphs) if loaded.model.note is not None else ClicksReport(loaded, graphs)


def _rows(report: ClicksReport | PairsReport) -> dict[str, Sequence[Step]]:
    rows: dict[str, Sequence[Step]] = {name: [report.baselines] for name in BASELINES}
    if isinstance(report, PairsReport):
        return rows | {label: steps for label, (_, steps) in report.rows.items()}
    return rows | report.rows
