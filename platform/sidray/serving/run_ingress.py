"""What a run's application shows of itself. Its other deployments are called by their names."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle

from sidray.serving.messages import RunInfo
from sidray.serving.settings import RunSettings


class RunIngress:
    """Every application has one ingress; this one holds the others together and answers what a gateway must know, and
    `sidray promote` of the settings."""

    def __init__(self, info: RunInfo, settings: RunSettings, *parts: DeploymentHandle[Any]) -> None:
        self._info = info
        self._settings = settings
        self._parts = parts

    async def info(self) -> RunInfo:
        return self._info

    async def settings(self) -> RunSettings:
        return self._settings
