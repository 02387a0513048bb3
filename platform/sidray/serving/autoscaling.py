"""How many embedder replicas: by the tokens that wait or are computed, since requests differ much in their cost.

Each replica reports `outstanding_tokens` of the requests that it has (record_autoscaling_stats), at most `max_ongoing`
of them; Serve counts those that wait for a replica. Its controller asks this policy, and applies the bounds and delays
of the settings to its answer.
"""

from __future__ import annotations

from ray.serve.config import AutoscalingContext

STAT = "outstanding_tokens"


class OutstandingTokens:
    """Keeps the tokens outstanding on each replica near `target`, and room in them for all requests."""

    def __init__(self, target: float, max_ongoing: int) -> None:
        self.target = target
        self.max_ongoing = max_ongoing

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """The wanted number of replicas, a fraction: Serve rounds it up."""
        reported = (context.aggregated_metrics or {}).get(STAT, {})
        requests = context.total_num_requests / self.max_ongoing  # short ones fill a replica with few tokens
        return max(sum(reported.values()) / self.target, requests), {}
