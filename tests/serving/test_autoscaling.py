"""The policy in Serve's own configuration, and what the embedder reports to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from sidray.serving.autoscaling import STAT, OutstandingTokens
from sidray.serving.settings import TokenAutoscaling


def context(requests: float = 0, **reported: float) -> Any:
    return SimpleNamespace(aggregated_metrics={STAT: reported} if reported else None, total_num_requests=requests)


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [({}, 0.0), ({"a": 100.0}, 1.0), ({"a": 250.0, "b": 50.0}, 3.0), ({"a": 0.0, "b": 0.0}, 0.0)],
)
def test_tokens_over_target(reported: dict[str, float], wanted: float) -> None:
    assert OutstandingTokens(100, max_ongoing=8)(context(**reported)) == (wanted, {})


@pytest.mark.parametrize(
    ("requests", "tokens", "wanted"),
    [(8, 48.0, 1.0), (20, 48.0, 2.5), (20, 400.0, 4.0), (3, 18.0, 0.375)],
)
def test_short_queries_that_wait_for_a_full_replica_want_another(requests: int, tokens: float, wanted: float) -> None:
    """Eight of them, of six tokens, are in the replica; the others wait where no replica counts them."""
    assert OutstandingTokens(100, max_ongoing=8)(context(requests, a=tokens)) == (wanted, {})


def test_serve_takes_the_settings() -> None:
    scaling = TokenAutoscaling(max_replicas=7, target_tokens=100, upscale_delay_s=1)
    config = AutoscalingConfig(**scaling.options(max_ongoing=4))
    policy = config.policy.get_policy()
    assert (config.max_replicas, config.upscale_delay_s) == (7, 1)
    made = policy(**config.policy.policy_kwargs) if isinstance(policy, type) else policy
    assert made(context(a=250.0)) == (2.5, {})
    assert made(context(14, a=250.0)) == (3.5, {})
