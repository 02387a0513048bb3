"""What `sidray run` evaluates and reports of a recipe on pairs: the tables of NoteLLM-2, over one or several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.cluster import on_cluster
from sidray.config import Values
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import read_vectors
from sidray.evaluation.gallery import GalleryQuery, write_gallery
from sidray.evaluation.pair_report import LONG, SHORT, Layout, Row, Versus, pair_table_text, write_pair_report
from sidray.evaluation.pair_run import VERSION, evaluate_baselines, evaluate_vectors, evaluate_zero_shot
from sidray.evaluation.pairs import ALL_PAIRS, Pairs, pair_subsets, seed_mean
from sidray.evaluation.protocol import load_ranks
from sidray.evaluation.report import markdown_table
from sidray.evaluation.run import RESULT
from sidray.evaluation.significance import compare_pairs
from sidray.graph_base import Graph, Run, dump
from sidray.report_files import Report, shown
from sidray.retrieval.exact import top_k
from sidray.steps import Step, Store
from sidray.training.plots import plot_saliencies
from sidray.training.saliency import RESULT as SALIENCY
from sidray.training.saliency import SCORES

BASELINES = {"popularity": "none", "BM25": "text"}  # what each is given
ZERO_SHOT = {"zero-shot image": ["image"], "zero-shot text": ["text"], "zero-shot text + image": ["text", "image"]}
METHODS = "Methods"
_SALIENCY = (
    "How much flows to the final compressed word from the picture (S_v) and from the text (S_t), beside all that flows "
    "elsewhere (S_o): means over pairs of positions and over notes, (3)-(6) of NoteLLM-2, divided by their sum in the "
    "layer. Layers count from 0; those whose states are cached have none. Of each variant's first seed."
)


class PairsReport(Report):
    """The tables of NoteLLM-2."""

    @property
    def _first(self) -> Graph:
        return self.graphs[self.recipe.label][0]

    def _step(self, name: str, run: Run, config: Values, inputs: Mapping[str, Step]) -> Step:
        settings = dump(self.recipe.evaluation, {"split", "short", "recall_at", "recall_at_all"})
        return Step(name, run, {"settings": settings, **config}, VERSION, inputs)

    @cached_property
    def baselines(self) -> Step:
        run = partial(on_cluster, evaluate_baselines, self.recipe.evaluation)
        return self._step("pair-baselines", run, {}, {"catalogue": self._first["catalogue"]})

    def _evaluate(self, graph: Graph, role: str) -> Step:
        inputs = {"catalogue": graph["catalogue"], "embed": graph[role]}
        return self._step("pair-evaluate", partial(on_cluster, evaluate_vectors, self.recipe.evaluation), {}, inputs)

    @cached_property
    def rows(self) -> dict[str, tuple[str, list[Step]]]:
        """Label -> what the model is given, and the evaluation of each seed."""
        rows: dict[str, tuple[str, list[Step]]] = {}
        for label, graphs in self.graphs.items():
            note = graphs[0].recipe.model.note
            assert note is not None
            rows[label] = (note.inputs, [self._evaluate(graph, "embed") for graph in graphs])
            for given in ("image", "text"):
                if f"given-{given}" in graphs[0]:
                    steps = [self._evaluate(graph, f"given-{given}") for graph in graphs]
                    rows[f"{label}, {given} only"] = (given, steps)
        if "zero-shot" in self._first:
            inputs = {"catalogue": self._first["catalogue"], "embed": self._first["zero-shot"]}
            for label, kinds in ZERO_SHOT.items():
                run = partial(on_cluster, evaluate_zero_shot, self.recipe.evaluation, kinds)
                given = kinds[0] if len(kinds) == 1 else "multimodal"
                rows[label] = (given, [self._step("pair-zero-shot", run, {"kinds": kinds}, inputs)])
        return rows

    def steps(self) -> list[Step]:
        """What must be done before `write`."""
        evaluations = [step for _, steps in self.rows.values() for step in steps]
        return [self.baselines, *evaluations, *self._saliency_steps.values()]

    @property
    def _saliency_steps(self) -> dict[str, Step]:
        """Those of the first seeds, by variant."""
        return {label: graphs[0]["saliency"] for label, graphs in self.graphs.items() if "saliency" in graphs[0]}

    def write(self, store: Store, folder: str) -> str:
        """The report of a run folder, unless there is one of these results already; returns its first table as text."""
        results = self._results(store)

        def fill(local: Path) -> str:
            layouts = self._layouts(results)
            comparisons = self._comparisons(store, next(iter(layouts.values())).labels)
            write_pair_report(results, layouts, local, comparisons)
            self._gallery(local / "gallery.html", store)
            self._saliency(local, store)
            return pair_table_text(results, layouts, comparisons)

        return self.save(store, folder, "rows", {label: row._asdict() for label, row in results.items()}, fill)

    def _results(self, store: Store) -> dict[str, Row]:
        beside = store.output(self.baselines)
        rows = {
            name: Row(given, [storage.read_json(storage.join(beside, f"{name}.json"))])
            for name, given in BASELINES.items()
        }
        for label, (given, steps) in self.rows.items():
            uris = [storage.join(store.output(step), f"{RESULT}.json") for step in steps]
            rows[label] = Row(given, [storage.read_json(uri) for uri in uris])
        return rows

    def _layouts(self, results: Mapping[str, Row]) -> dict[str, Layout]:
        """The recipe's own tables, else one of all methods; then what appendix D and E and table 3 have."""
        alone = [label for label in results if label.endswith((", image only", ", text only"))]
        methods = [label for label in results if label not in {*alone, *ZERO_SHOT}]
        tables = self.recipe.evaluation.tables or {METHODS: methods}
        layouts = {title: Layout(labels) for title, labels in tables.items()}
        given = [each for label in methods for each in (f"{label}, image only", f"{label}, text only", label)]
        shown = {label for label in methods if f"{label}, text only" in results}
        layouts["Given one modality alone (table 3)"] = Layout([each for each in given if each.split(", ")[0] in shown])
        layouts["Zero-shot (table 10)"] = Layout([*ZERO_SHOT, "BM25"] if "zero-shot text" in results else [])
        layouts["Long pairs (table 11)"] = Layout(next(iter(layouts.values())).labels, LONG)
        return layouts

    def _gallery(self, path: Path, store: Store) -> None:
        """Some notes, each with what every variant (its first seed) finds for it in the pool."""
        settings = self.recipe.evaluation
        pairs = self._pairs(store)
        drawn = np.random.default_rng(0).permutation(np.unique(pairs.queries, return_index=True)[1])
        chosen = np.sort(drawn[: settings.gallery_queries])
        found = {"the note": [[int(row)] for row in pairs.queries[chosen]]}
        places = np.searchsorted(pairs.rows, pairs.queries[chosen])
        for label, graphs in self.graphs.items():
            vectors = read_vectors(storage.join(store.output(graphs[0]["embed"]), "items.lance"), "vector", pairs.rows)
            _, near = top_k(vectors[places], vectors, min(settings.gallery_k + 1, len(pairs.rows)))
            others = [line[line != place][: settings.gallery_k] for line, place in zip(near, places, strict=True)]
            found[label] = [pairs.rows[line].tolist() for line in others]
        item = shown(pairs.catalogue)
        queries = [
            GalleryQuery(item(note)[0], int(target))
            for (note,), target in zip(found["the note"], pairs.targets[chosen], strict=True)
        ]
        write_gallery(path, queries, found, item)

    def _saliency(self, local: Path, store: Store) -> None:
        """saliency.png, the variants side by side as in figure 4, and saliency.md, its numbers; for one there is no
        need."""
        steps = self._saliency_steps
        if len(steps) < 2:
            return
        found = {label: storage.read_json(storage.join(store.output(step), SALIENCY)) for label, step in steps.items()}
        picture = plot_saliencies({label: (each["layers"], each["relative"]) for label, each in found.items()})
        (local / "saliency.png").write_bytes(picture)
        (local / "saliency.md").write_text(_saliency_table(found))

    def _pairs(self, store: Store) -> Pairs:
        return Pairs.of(Catalogue.open(store.output(self._first["catalogue"])), self.recipe.evaluation.split)

    def ranks(self, store: Store, label: str) -> list[pa.Table]:
        if label in BASELINES:
            return [load_ranks(storage.join(store.output(self.baselines), f"{label}.parquet"))]
        return [load_ranks(storage.join(store.output(step), f"{RESULT}.parquet")) for step in self.rows[label][1]]

    def _comparisons(self, store: Store, labels: Sequence[str]) -> list[Versus]:
        """The recipe's own row against the best other one of the table by every metric, and against each of them by the
        first."""
        settings, label = self.recipe.evaluation, self.recipe.label
        pairs = self._pairs(store)
        ranks = {name: self.ranks(store, name) for name in labels if name in self.rows or name in BASELINES}
        if label not in ranks or len(ranks) < 2:
            return []
        subsets = pair_subsets(pairs, settings.short)
        found = []
        for where in (where for where in SHORT if where in subsets):
            mask = subsets[where].mask
            notes = (pairs.queries[mask], pairs.targets[mask])
            for metric in [f"recall@{k}" for k in settings.recall_at]:
                values = {name: seed_mean(tables, metric)[mask] for name, tables in ranks.items()}
                others = sorted((name for name in values if name != label), key=lambda name: -np.mean(values[name]))
                every = where == ALL_PAIRS and metric == f"recall@{settings.recall_at[0]}"
                for other in others if every else others[:1]:
                    test = compare_pairs(values[label], values[other], *notes)
                    found.append(Versus(label, other, where, metric, test))
        return found


def _saliency_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the relative scores of every variant, layer by layer; found: variant -> its saliency.json."""
    lines = []
    for label, each in found.items():
        for place, layer in enumerate(each["layers"]):
            scores = [each["relative"][name] for name in SCORES]
            cells = ["-" if values is None else f"{values[place]:.3f}" for values in scores]
            lines.append([label, str(layer), *cells, str(each["notes"])])
    table = markdown_table(["variant", "layer", *SCORES, "notes"], lines)
    return f"# Saliency\n\n{_SALIENCY}\n\n![Saliency by layer](saliency.png)\n\n{table}\n"
