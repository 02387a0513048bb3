"""`sidray promote RUN`: another run beside the one that is served, or in its place, without a pause.

    promote(run, variant, weight=0.1, shadow=False)   # an A/B test at 10 %, as in both papers
    promote(run, variant, weight=1.0, shadow=False)   # all traffic; the applications of the others end
    promote(run, variant, weight=0.0, shadow=True)    # copies of all searches, answers nobody sees
    promote(run, variant, weight=0.0, shadow=False)   # ends it

The run becomes an application of its own, with its own item table. When it is up, new replicas of the gateway with the
new shares take the place of the old ones, which end what they have begun.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ray import serve

from sidray.cluster import ray_cluster
from sidray.config import overridden
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.serving.app import build_gateway, build_run
from sidray.serving.run import NAME, deploy
from sidray.serving.settings import GatewaySettings
from sidray.serving.traffic import Shares

ANSWER_S = 30.0


def promote(run: str, variant: str, weight: float, shadow: bool, overrides: Sequence[str] = ()) -> Shares:
    """The new shares. `overrides`: of RunSettings, where the run is not up yet.

    UserError where no gateway is served, for a run that cannot be, and when none would be left."""
    name = RunFolder.open(run, variant).name
    os.environ.setdefault("RAY_ADDRESS", "auto")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's
    with ray_cluster():
        settings, shares = _served()
        wanted = shares_with(shares, name, weight, shadow)
        if name in wanted.everybody and name not in serve.status().applications:
            deploy(build_run(overridden({"run": run, "variant": variant}, overrides)), name, None)
        values = {"weights": wanted.weights, "shadows": wanted.shadows, "gateway": settings.model_dump()}
        deploy(build_gateway(values), NAME, "/")
        for gone in set(shares.everybody) - set(wanted.everybody):
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


def _served() -> tuple[GatewaySettings, Shares]:
    if NAME not in serve.status().applications:
        remedy = "start one: sidray serve RUN, or serve deploy serve/search.yaml"
        raise UserError("no sidray gateway is served on this cluster", remedy)
    answer: tuple[GatewaySettings, Shares] = serve.get_app_handle(NAME).served.remote().result(timeout_s=ANSWER_S)
    return answer
