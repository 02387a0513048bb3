"""What Serve's own tools take.

serve run serve.app:search run=sidray-runs/runs/RUN
serve deploy serve/search.yaml
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from sidray.serving.app import build_app


def search(args: dict[str, Any]) -> Application:
    """The search service of a finished run; `args` as in search.yaml."""
    return build_app(args)
