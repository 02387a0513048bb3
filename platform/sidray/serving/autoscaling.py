"""How many embedder replicas: by the tokens that wait or are computed, since requests differ much in their cost.

Each replica reports `outstanding_tokens` (record_autoscaling_stats); Serve's controller asks this policy, and applies
the bounds and delays of the settings to its answer.
"""

from __future__ import annotations

from ray.serve.config import AutoscalingContext

STAT = "outstanding_tokens"


class OutstandingTokens:
    """Keeps the tokens outstanding on each replica near `target`."""

    def __init__(self, target: float) -> None:
        self.target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """The wanted number of replicas, a fraction: Serve rounds it up."""
        reported = (context.aggregated_metrics or {}).get(STAT, {})
        return sum(reported.values()) / self.target, {}
