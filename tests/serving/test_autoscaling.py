"""The policy in Serve's own configuration, and what the embedder reports to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from sidray.serving.autoscaling import STAT, OutstandingTokens
from sidray.serving.settings import TokenAutoscaling


def context(**reported: float) -> Any:
    return SimpleNamespace(aggregated_metrics={STAT: reported} if reported else None)


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [({}, 0.0), ({"a": 100.0}, 1.0), ({"a": 250.0, "b": 50.0}, 3.0), ({"a": 0.0, "b": 0.0}, 0.0)],
)
def test_tokens_over_target(reported: dict[str, float], wanted: float) -> None:
    assert OutstandingTokens(100)(context(**reported)) == (wanted, {})


def test_serve_takes_the_settings() -> None:
    options = TokenAutoscaling(max_replicas=7, target_tokens=100, upscale_delay_s=1).options()
    config = AutoscalingConfig(**options)
    policy = config.policy.get_policy()
    assert (config.max_replicas, config.upscale_delay_s) == (7, 1)
    made = policy(**config.policy.policy_kwargs) if isinstance(policy, type) else policy
    assert made(context(a=250.0)) == (2.5, {})
