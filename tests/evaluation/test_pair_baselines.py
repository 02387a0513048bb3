"""Every baseline of pairs against a plain loop over the notes, and the steps that write their files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import vector_column
from sidray.errors import UserError
from sidray.evaluation.baselines import tokens
from sidray.evaluation.pair_baselines import bm25, popularity, zero_shot
from sidray.evaluation.pair_run import evaluate_baselines, evaluate_vectors, evaluate_zero_shot
from sidray.evaluation.pairs import Pairs, evaluate_pairs, pair_ranks, pair_recall, pair_subsets, saved_ranks
from sidray.evaluation.protocol import load_ranks
from sidray.evaluation.settings import EvaluationSettings
from sidray.steps import Work
from tests.evaluation.test_baselines import WORDS, lucene
from tests.evaluation.test_pairs import catalogue_of, cosine, loop, pair_table, same, world


@given(seed=st.integers(0, 10**6))
def test_popularity(seed: int) -> None:
    pairs = world(seed)
    counts = Counter(pairs.catalogue.pairs("train")["related_row"].to_pylist())
    same(popularity(pairs), loop(pairs, lambda _, row, pool: counts[row]))


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_bm25(seed: int) -> None:
    """Words repeat inside a note, and some notes have none."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 5))) for _ in range(rng.integers(2, 10))]
    pairs, words = world(seed, texts), [tokens(text) for text in texts]

    def score(query: int, row: int, pool: list[int]) -> float:
        corpus = [words[each] for each in pool]
        return lucene(words[query], words[row], corpus) if any(corpus) else 0.0

    same(bm25(pairs), loop(pairs, score))


def with_train(seed: int) -> Pairs:
    """A world that certainly has a train pair, of its first two notes."""
    pairs = world(seed)
    table = pairs.catalogue.pairs().select(["item_row", "related_row", "split"])
    table = pa.concat_tables([table, pair_table([(0, 1, "train")]).cast(table.schema)])
    return Pairs.of(catalogue_of(pa.table({"title": ["x"] * pairs.catalogue.n_items}), table), "test")


@given(seed=st.integers(0, 10**6), parts=st.integers(1, 3))
def test_zero_shot_is_the_mean_of_centred_cosines(seed: int, parts: int) -> None:
    pairs, rng = with_train(seed), np.random.default_rng(seed)
    count = pairs.catalogue.n_items
    vectors = [rng.standard_normal((count, 2 + part)) * (rng.random((count, 1)) < 0.7) for part in range(parts)]
    for each in vectors:
        each[:2] = rng.standard_normal((2, each.shape[1]))  # the train pair's
    train = pairs.catalogue.pairs("train")
    rows = sorted({*train["item_row"].to_pylist(), *train["related_row"].to_pylist()})
    centred = []
    for part in vectors:
        have = part.any(axis=1)
        mean = np.mean([part[row] for row in rows if have[row]], axis=0)
        centred.append(np.stack([part[row] - mean if have[row] else part[row] for row in range(count)]))
    expected = loop(pairs, lambda query, row, _: sum(cosine(each[query], each[row]) for each in centred) / parts)
    same(zero_shot(pairs, vectors), expected)


def test_centring_takes_the_common_direction_away() -> None:
    """Raw cosines are all near 1 and the nearest is the wrong note; the train items' mean is the common direction."""
    vectors = np.array([[100, 0.9], [100, -0.9], [100, 3], [100, 1], [130, -0.1]], np.float32)
    rows = [(0, 1, "train"), (2, 3, "test"), (4, 2, "test")]
    pairs = Pairs.of(catalogue_of(pa.table({"title": ["x"] * 5}), pair_table(rows)), "test")
    assert zero_shot(pairs, [vectors]).everything.greater.tolist()[0] == 0
    missing = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    with pytest.raises(UserError, match="cannot be centred"):
        zero_shot(pairs, [vectors, missing])


def test_half_precision_vectors_are_taken() -> None:
    pairs, rng = with_train(3), np.random.default_rng(0)
    vectors = rng.integers(1, 4, (pairs.catalogue.n_items, 3))
    same(zero_shot(pairs, [vectors.astype(np.float16)]), zero_shot(pairs, [vectors.astype(np.float64)]))


def hm_catalogue(folder: Path) -> Catalogue:
    items = pq.ParquetDataset(folder / "items").read(columns=["item_id", "title", "category", "description"])
    pairs, clicks = pq.read_table(folder / "pairs.parquet"), pq.read_table(folder / "clicks.parquet")
    ids = items["item_id"].combine_chunks()
    named = {"item_row": pairs["item_id"], "related_row": pairs["related_id"]}
    rows = {name: pc.index_in(column, ids).cast(pa.int64()) for name, column in named.items()}
    clicked = pc.index_in(clicks["item_id"], ids).cast(pa.int64())
    table = pa.table(rows | {"split": pairs["split"]})
    return catalogue_of(items, table, pa.table({"item_row": clicked, "split": clicks["split"]}))


def test_hm_has_its_pools_and_thirds(shared_data: Path) -> None:
    pairs = Pairs.of(hm_catalogue(shared_data / "hm"), "test")
    assert (len(pairs.queries), len(pairs.rows), len(pairs.everything)) == (5729, 2923, 11_800)
    found = pair_subsets(pairs, 1 / 3)
    assert found["short query pairs"].rule.startswith("1,877 pairs of 947 query notes; the query note has at most 24")
    assert [int(each.mask.sum()) for each in found.values()] == [5729, 1877, 1976, 1800, 2033]
    vectors = np.random.default_rng(0).standard_normal((pairs.catalogue.n_items, 64)).astype(np.float32)
    values = pair_recall(pair_ranks(pairs, vectors), "all recall@100")
    assert values.mean() == pytest.approx(100 / 11_799, abs=0.004)  # vectors of noise are chance


def test_bm25_of_hm(shared_data: Path) -> None:
    """Far above chance (10 of 2,922), and the larger pool is harder. No test target has a train pair: popularity is
    chance."""
    pairs = Pairs.of(hm_catalogue(shared_data / "hm"), "test")
    ranks = bm25(pairs)
    found = [pair_recall(ranks, metric).mean() for metric in ("recall@10", "recall@100", "all recall@10")]
    assert found == pytest.approx([0.1688, 0.2844, 0.1435], abs=1e-4)
    assert pair_recall(popularity(pairs), "recall@10") == pytest.approx(10 / 2922)


def stored(folder: Path) -> tuple[str, str, np.ndarray]:
    """A catalogue of 40 notes and the vectors of an embed step, as Lance folders."""
    rng = np.random.default_rng(0)
    catalogue, embed = folder / "catalogue", folder / "embed"
    numbers = np.arange(40)
    titles = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in numbers]
    pairs = pa.table(
        {"item_row": numbers, "related_row": np.roll(numbers, 1), "split": ["train", "test", "test", "mixed"] * 10}
    )
    vectors = rng.standard_normal((40, 6)).astype(np.float32)
    lance.write_dataset(pa.table({"title": titles}), str(catalogue / "items.lance"))
    lance.write_dataset(pairs, str(catalogue / "pairs.lance"))
    columns = {"vector": vectors, "text": vectors[:, :3].astype(np.float16), "image": vectors[:, 3:]}
    table = pa.table({name: vector_column(values) for name, values in columns.items()})
    lance.write_dataset(table, str(embed / "items.lance"))
    manifest = {"items": 40, "text_fields": [], "tables": ["items", "pairs"]}
    storage.write_json(str(catalogue / "catalogue.json"), manifest)
    return str(catalogue), str(embed), vectors


def test_the_steps_write_results_and_ranks(tmp_path: Path) -> None:
    catalogue, embed, vectors = stored(tmp_path)
    settings = EvaluationSettings(short=0.3, recall_at=[1, 5], recall_at_all=[5])
    work = {name: Work(str(tmp_path / name), {"catalogue": catalogue, "embed": embed}) for name in ("a", "b", "c")}
    summaries = evaluate_baselines(settings, work["a"])
    assert list(summaries) == ["popularity", "BM25"]
    summaries |= {"vectors": evaluate_vectors(settings, work["b"])}
    summaries |= {"zero-shot": evaluate_zero_shot(settings, ["text", "image"], work["c"])}
    pairs = Pairs.of(Catalogue.open(catalogue), "test")
    parts = [vectors[:, :3].astype(np.float16), vectors[:, 3:]]
    expected = {
        ("a", "popularity"): popularity(pairs),
        ("a", "BM25"): bm25(pairs),
        ("b", "result"): pair_ranks(pairs, vectors),
        ("c", "result"): zero_shot(pairs, parts),
    }
    for ((folder, name), ranks), summary in zip(expected.items(), summaries.values(), strict=True):
        same(saved_ranks(load_ranks(str(tmp_path / folder / f"{name}.parquet"))), ranks)
        result = storage.read_json(str(tmp_path / folder / f"{name}.json"))
        assert result == evaluate_pairs(pairs, ranks, 0.3, [1, 5], [5])
        overall = result["rows"]["all pairs"]
        names = ["pairs", "queries", "recall@1", "recall@5", "all recall@5"]
        assert summary == {metric: overall[metric] for metric in names}
