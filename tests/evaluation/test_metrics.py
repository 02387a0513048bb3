"""Metrics against trec_eval where there are no ties, and against every order of the ties where there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from sidray.evaluation.metrics import NDCG_AT, RECALL_AT, Ranks, ndcg, per_click, recall
from sidray.retrieval.exact import UNREACHABLE


@given(seed=st.integers(0, 10**6), items=st.integers(1, 60), clicks=st.integers(1, 8))
def test_without_ties_they_are_trec_eval(seed: int, items: int, clicks: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.stack([rng.permutation(items) for _ in range(clicks)]).astype(float)
    positives = rng.integers(0, items, clicks)
    run = {str(c): {str(n): float(scores[c, n]) for n in range(items)} for c in range(clicks)}
    truth = {str(c): {str(positives[c]): 1} for c in range(clicks)}
    wanted = pytrec_eval.RelevanceEvaluator(truth, {"recall.1,5,10,20", "ndcg_cut.5,10,20"}).evaluate(run)
    own = scores[np.arange(clicks), positives]
    ours = per_click(Ranks((scores > own[:, None]).sum(1), np.zeros(clicks, np.int64)))
    for k in RECALL_AT:
        assert ours[f"recall@{k}"].tolist() == [wanted[str(c)][f"recall_{k}"] for c in range(clicks)]
    for k in NDCG_AT:
        expected = [wanted[str(c)][f"ndcg_cut_{k}"] for c in range(clicks)]
        np.testing.assert_allclose(ours[f"ndcg@{k}"], expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
def test_with_ties_they_are_the_mean_over_all_orders(k: int) -> None:
    for greater, equal in itertools.product(range(6), range(5)):
        ranks = [greater + 1 + order.index(0) for order in itertools.permutations(range(equal + 1))]
        pair = np.array([greater]), np.array([equal])
        assert recall(*pair, k)[0] == pytest.approx(np.mean([rank <= k for rank in ranks]), abs=1e-12)
        gains = [(rank <= k) / np.log2(rank + 1) for rank in ranks]
        assert ndcg(*pair, k)[0] == pytest.approx(np.mean(gains), abs=1e-12)


def test_an_unreachable_item_is_a_miss_and_a_constant_score_is_chance() -> None:
    values = per_click(Ranks(np.array([UNREACHABLE, 0]), np.array([0, 999])))
    assert all(each[0] == 0 for each in values.values())
    assert values["recall@10"][1] == pytest.approx(10 / 1000)
