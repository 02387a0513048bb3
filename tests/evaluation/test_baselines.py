"""Every baseline against a plain loop over the candidates, and the oracle against its published figures."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.evaluation import baselines
from sidray.evaluation.baselines import Pool, bm25, oracle, popularity, tokens, vectors
from sidray.evaluation.metrics import Ranks, per_click
from sidray.retrieval.exact import UNREACHABLE

WORDS = ["red", "blue", "dress", "shirt", "烤鸭套餐"]


def world(seed: int) -> tuple[pa.Table, pa.Array]:
    """Clicks of all splits and the partitions of 12 candidates. Some clicks have another partition than their item, one
    that no item has, or none."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    item_row = rng.integers(0, 10, count)
    partitions = list(rng.choice(["a", "b", ""], 12))
    clicked = [partitions[row] if rng.random() < 0.7 else rng.choice(["a", "b", "", "nowhere"]) for row in item_row]
    columns = {
        "query": [" ".join(rng.choice(WORDS, 2)) for _ in range(count)],
        "item_row": item_row,
        "partition": pa.array(clicked, pa.string()),
        "split": list(rng.choice(["train", "test"], count)),
    }
    return pa.table(columns), pa.array([str(name) for name in partitions])


def loop(clicks: pa.Table, partitions: pa.Array, score: Callable[[dict, int], float]) -> np.ndarray:
    """(greater, equal) of each click by comparing scores one by one; [2, n]."""
    found, names = [], partitions.to_pylist()
    for click in clicks.to_pylist():
        scope = [row for row, name in enumerate(names) if click["partition"] in ("", name)]
        if click["item_row"] not in scope:
            found.append((UNREACHABLE, 0))
            continue
        own = score(click, click["item_row"])
        others = [score(click, row) - own for row in scope if row != click["item_row"]]
        found.append((sum(each > 1e-6 for each in others), sum(abs(each) <= 1e-6 for each in others)))
    return np.array(found, np.int64).reshape(-1, 2).T


def same(ranks: Ranks, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(ranks.greater, expected[0])
    np.testing.assert_array_equal(ranks.equal, expected[1])


@given(seed=st.integers(0, 10**6))
def test_popularity(seed: int) -> None:
    clicks, partitions = world(seed)
    train = clicks.filter(pc.equal(clicks["split"], "train"))["item_row"]
    counts = Counter(train.to_pylist())
    ranks = popularity(Pool.of(clicks, partitions), train)
    same(ranks, loop(clicks, partitions, lambda _, row: counts[row]))


@given(seed=st.integers(0, 10**6))
def test_oracle(seed: int) -> None:
    clicks, partitions = world(seed)
    test = clicks.filter(pc.equal(clicks["split"], "test"))
    led_to = set(zip(clicks["query"].to_pylist(), clicks["item_row"].to_pylist(), strict=True))
    ranks = oracle(Pool.of(test, partitions), clicks)
    same(ranks, loop(test, partitions, lambda click, row: (click["query"], row) in led_to))


def lucene(query: list[str], document: list[str], corpus: list[list[str]]) -> float:
    """BM25 in Lucene's form, written out: k1 = 1.5, b = 0.75."""
    mean = sum(map(len, corpus)) / len(corpus)
    score = 0.0
    for word in query:
        holding = sum(word in each for each in corpus)
        frequency = document.count(word)
        weight = frequency / (frequency + 1.5 * (0.25 + 0.75 * len(document) / mean)) if frequency else 0.0
        score += math.log(1 + (len(corpus) - holding + 0.5) / (holding + 0.5)) * weight
    return score


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_bm25(seed: int) -> None:
    clicks, partitions = world(seed)
    rng = np.random.default_rng(seed + 1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 4))) for _ in range(12)]
    corpus = [tokens(text) for text in texts]
    ranks = bm25(Pool.of(clicks, partitions), texts)
    scorer = lambda click, row: lucene(tokens(click["query"]), tokens(texts[row]), corpus)  # noqa: E731
    same(ranks, loop(clicks, partitions, scorer if any(corpus) else lambda *_: 0.0))


def test_bm25_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks, partitions = world(3)
    texts = [f"{WORDS[n % 4]} {WORDS[n % 3]}" for n in range(12)]
    whole = bm25(Pool.of(clicks, partitions), texts)
    monkeypatch.setattr(baselines, "_SCORE_BLOCK", 3)
    same(bm25(Pool.of(clicks, partitions), texts), np.stack(whole))


@given(seed=st.integers(0, 10**6))
def test_vectors(seed: int) -> None:
    clicks, partitions = world(seed)
    rng = np.random.default_rng(seed)
    queries, items = rng.integers(-2, 3, (len(clicks), 3)), rng.integers(-2, 3, (12, 3))

    def cosine(click: dict, row: int) -> float:
        a, b = queries[click["n"]].astype(float), items[row].astype(float)
        return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))

    numbered = clicks.append_column("n", pa.array(range(len(clicks))))
    ranks = vectors(Pool.of(clicks, partitions), queries.astype(np.float32), items.astype(np.float32))
    same(ranks, loop(numbered, partitions, cosine))


def test_jax_where_it_is_installed_stays_off_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(
        "import os\nprint('platform', os.environ.get('JAX_PLATFORMS'))\n1 / 0\n"
    )
    program = "import sidray.run, sidray.evaluation.baselines as b; print('imported'); b.bm25_matrix([['red']])"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["imported", "platform cpu"], done.stderr


def test_tokens() -> None:
    assert tokens("Red V-Neck 烤鸭套餐 top_2") == ["red", "v", "neck", "烤鸭", "鸭套", "套餐", "top_2"]
    assert tokens("iPhone手机壳x 鸭") == ["iphone", "手机", "机壳", "x", "鸭"]
    assert tokens("Ünï ราคา 가격표") == ["ünï", "ราคา", "가격", "격표"]
    assert tokens(" --- ") == []


def test_the_oracle_of_hm_has_its_published_figures(shared_data: Path) -> None:
    """The data's README: R@1 .755 and R@10 .924 over all test clicks, R@10 .771 for kind = type."""
    clicks = pq.read_table(shared_data / "hm" / "clicks.parquet")
    items = pq.ParquetDataset(shared_data / "hm" / "items").read(columns=["item_id", "partition"])
    items = items.filter(pc.is_in(items["item_id"], clicks["item_id"].combine_chunks()))  # the candidates
    rows = pc.index_in(clicks["item_id"], items["item_id"].combine_chunks()).cast(pa.int64())
    clicks = clicks.append_column("item_row", rows)
    test = clicks.filter(pc.equal(clicks["split"], "test"))
    ranks = oracle(Pool.of(test, items["partition"]), clicks)
    values = per_click(ranks)
    of_type = np.array(test["kind"].to_pylist()) == "type"
    assert values["recall@1"].mean() == pytest.approx(0.755, abs=5e-4)
    assert values["recall@10"].mean() == pytest.approx(0.924, abs=5e-4)
    assert values["recall@10"][of_type].mean() == pytest.approx(0.771, abs=5e-4)
