"""`sidray promote RUN`: another run beside the one that is served, or in its place, without a pause.

    promote(run, variant, weight=0.1, shadow=False)   # an A/B test at 10 %, as in both papers
    promote(run, variant, weight=1.0, shadow=False)   # all traffic; the applications of the others end
    promote(run, variant, weight=0.0, shadow=True)    # copies of all searches, answers nobody sees
    promote(run, variant, weight=0.0, shadow=False)   # ends it, also where it came up and never got a share

The run becomes an application of its own, with its own item table and the sizes of the primary. When it is up, new
replicas of the gateway with the new shares take the place of the old ones, which end what they have begun.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from sidray.cluster import ray_cluster
from sidray.config import Values, overridden
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.serving.app import build_gateway, build_run
from sidray.serving.run import NAME, deploy
from sidray.serving.settings import GatewaySettings, RunSettings
from sidray.serving.traffic import Shares

ANSWER_S = 30.0


def promote(run: str, variant: str, weight: float, shadow: bool, overrides: Sequence[str] = ()) -> Shares:
    """The new shares. `overrides`: of RunSettings, over those of the primary, where the run is not up yet.

    UserError where no gateway is served, for a run that cannot be, when none would be left, and when the primary does
    not say its settings: a run of the default sizes could not carry its traffic."""
    name = RunFolder.open(run, variant).name
    os.environ.setdefault("RAY_ADDRESS", "auto")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's
    with ray_cluster():
        settings, shares = _served()
        wanted = shares_with(shares, name, weight, shadow)
        if name in wanted.everybody and name not in serve.status().applications:
            values = {**_settings_of(shares.primary).model_dump(), "run": run, "variant": variant}
            deploy(build_run(_resized(values, overrides)), name, None)
        front = {"weights": wanted.weights, "shadows": wanted.shadows, "gateway": settings.model_dump()}
        deploy(build_gateway(front), NAME, "/")
        for gone in {name, *shares.everybody} - set(wanted.everybody):
            if gone in serve.status().applications:
                serve.delete(gone)
    return wanted


def shares_with(shares: Shares, name: str, weight: float, shadow: bool) -> Shares:
    """`weight` (0 to 1) of the traffic for this run; the others keep their proportions and share the rest."""
    others = {each: value for each, value in shares.weights.items() if each != name} if weight < 1 else {}
    total = sum(others.values())
    weights = {each: (1 - weight) * value / total for each, value in others.items()}
    weights |= {name: weight} if weight else {}
    shadows = [each for each in shares.shadows if each != name and weight < 1] + ([name] if shadow else [])
    if not weights:
        raise UserError(f"{name} is the only run that is served", "promote another one with --weight 1 instead")
    if not others:
        weights = {name: 1.0}
    return Shares(weights, shadows)


def _resized(values: Values, overrides: Sequence[str]) -> Values:
    """With the overrides applied. A number of replicas takes the place of the primary's autoscaling."""
    for part in ("embedder", "recall"):
        if any(each.startswith(f"{part}.replicas=") for each in overrides):
            values[part]["autoscaling"] = None
    return overridden(values, overrides)


def _settings_of(name: str) -> RunSettings:
    """Of the application of a run. UserError when it does not answer."""
    try:
        handle: DeploymentHandle[Any] = serve.get_deployment_handle("Run", name)
        answer: RunSettings = handle.settings.remote().result(timeout_s=ANSWER_S)
    except (KeyError, TimeoutError, RayError, RayServeException) as error:
        remedy = "see `serve status`; without the primary, write the new run into the file of `serve deploy`"
        raise UserError(f"{name}, the primary, does not say its settings: {error!r}", remedy) from error
    return answer


def _served() -> tuple[GatewaySettings, Shares]:
    if NAME not in serve.status().applications:
        remedy = "start one: sidray serve RUN, or serve deploy serve/search.yaml"
        raise UserError("no sidray gateway is served on this cluster", remedy)
    answer: tuple[GatewaySettings, Shares] = serve.get_app_handle(NAME).served.remote().result(timeout_s=ANSWER_S)
    return answer
