"""What `sidray run` evaluates and reports of a recipe on clicks: baselines, every variant's rows over one or several
seeds, gallery, curves."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.evaluation.clicks import Clicks, Vectors
from sidray.evaluation.gallery import GalleryQuery, choose, write_gallery
from sidray.evaluation.protocol import ALL_CLICKS, Result, load_ranks, mean_result
from sidray.evaluation.report import table_text, write_report
from sidray.evaluation.run import RESULT
from sidray.evaluation.significance import Comparison, compare
from sidray.graph_evaluation import baselines, rows_of
from sidray.report_files import Report, shown
from sidray.steps import Step, Store


class ClicksReport(Report):
    """The tables of SMGR."""

    @cached_property
    def baselines(self) -> Step:
        return baselines(self.graphs[self.recipe.label][0])

    @cached_property
    def rows(self) -> dict[str, list[Step]]:
        """Label -> the evaluation of each seed."""
        seeded = [rows_of(name, graph) for name, graphs in self.graphs.items() for graph in graphs]
        labels = dict.fromkeys(label for rows in seeded for label in rows)
        return {label: [rows[label] for rows in seeded if label in rows] for label in labels}

    def steps(self) -> list[Step]:
        """What must be done before `write`."""
        return [self.baselines, *(step for steps in self.rows.values() for step in steps)]

    def write(self, store: Store, folder: str) -> str:
        """The report of a run folder, unless there is one of these results already; returns the table as text."""
        outputs = self._outputs(store)
        results: dict[str, Result] = {
            name: mean_result([storage.read_json(f"{uri}.json") for uri in uris]) for name, uris in outputs.items()
        }

        def fill(local: Path) -> str:
            several = results[self.recipe.label]["rows"][ALL_CLICKS]["queries"] > 1  # what is resampled
            write_report(results, local, comparisons=self._comparisons(outputs) if several else None)
            self._gallery(local / "gallery.html", store)
            return table_text(results)

        return self.save(store, folder, "results", results, fill)

    def _outputs(self, store: Store) -> dict[str, list[str]]:
        """Row of the table -> where the result (.json) and the ranks by click (.parquet) of each seed lie."""
        beside = store.output(self.baselines)
        outputs = {name: [storage.join(beside, name)] for name in ("popularity", "BM25")}
        outputs |= {
            row: [storage.join(store.output(step), RESULT) for step in steps] for row, steps in self.rows.items()
        }
        return outputs | {"oracle": [storage.join(beside, "oracle")]}

    def _comparisons(self, outputs: dict[str, list[str]]) -> dict[str, Comparison]:
        """The recipe's own row against every other one but the ceiling, click by click."""
        label = self.recipe.label
        ranks = {name: [load_ranks(f"{uri}.parquet") for uri in uris] for name, uris in outputs.items()}
        others = [name for name in ranks if name not in {label, "oracle"}]
        return {f"{label} against {name}": compare(ranks[label], ranks[name]) for name in others}

    def _gallery(self, path: Path, store: Store) -> None:
        """The first results of every variant (its first seed) for some queries (figure 3)."""
        recipe, graphs = self.recipe, self.firsts
        catalogue = Catalogue.open(store.output(graphs[recipe.label]["catalogue"]))
        clicks = Clicks.of(catalogue, recipe.evaluation.split)
        positions = choose(clicks.table, recipe.evaluation.gallery_queries)
        found = {
            name: clicks.top(
                *Vectors(store.output(graph["embed"])).load(clicks), positions, recipe.evaluation.gallery_k
            )
            for name, graph in graphs.items()
        }
        chosen = clicks.table.take(positions).to_pylist()
        queries = [GalleryQuery(row["query"], row["item_row"], row["partition"]) for row in chosen]
        write_gallery(path, queries, found, shown(catalogue))
