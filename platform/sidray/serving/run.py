"""`sidray serve RUN`: the service of a finished run on this machine, or on the cluster of RAY_ADDRESS, until Ctrl-C.

A cluster that serves for good takes `serve deploy serve/search.yaml` instead.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from sidray.cluster import ray_cluster
from sidray.config import overridden
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.serving.app import build_gateway, build_run

NAME = "sidray"
START_S = 1800.0  # a large model is read from a bucket, or nodes are added


def serve_run(run: str, variant: str, host: str, port: int, overrides: Sequence[str] = ()) -> None:
    """Serves until Ctrl-C or SIGTERM. UserError for a run that is none, a port in use, and a cluster that serves."""
    try:
        with running_service(run, variant, host, port, overrides) as url:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own when it started
            address = ray.get_runtime_context().gcs_address
            mode = os.environ.get("RAY_AUTH_MODE", "")
            cluster = f"RAY_ADDRESS={address}" + (f" RAY_AUTH_MODE={mode}" if mode else "")
            print(f"serving {run} at {url}   (Ctrl-C ends it; its cluster is {cluster})", flush=True)
            print(example(url), flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")


@contextmanager
def running_service(run: str, variant: str, host: str, port: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """The service for the block; yields its URL. `overrides`: of RunSettings, and of GatewaySettings below gateway."""
    values = overridden({"run": run, "variant": variant}, overrides)
    gateway = values.pop("gateway", {})
    app, name = build_run(values), RunFolder.open(run, variant).name
    front = build_gateway({"weights": {name: 1.0}, "gateway": gateway})
    _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's; replicas log as ever
    with ray_cluster():
        if serve.status().proxies:
            remedy = "add this run with `sidray promote RUN`, or end the service with `serve shutdown`"
            raise UserError("this Ray cluster runs Serve already", remedy)
        try:
            serve.start(http_options={"host": host, "port": port})
            deploy(app, name, None)
            deploy(front, NAME, "/")
            yield url_of(host, port)
        finally:
            serve.shutdown()


def deploy(app: Application, name: str, route_prefix: str | None) -> None:
    """Returns when it runs; prints what it waits for, such as CPUs. UserError with the cause when a replica cannot
    start, and after START_S."""
    target = serve.RunTarget(app, name, route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    until, said = time.monotonic() + START_S, set[str]()
    while time.monotonic() < until:
        status = serve.status().applications[name]
        if status.status == ApplicationStatus.RUNNING:
            return
        news = {f"{name}: {part}: {line}" for part, line in _last_lines(status)}
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            cause = "; ".join(sorted(news)) or status.message
            remedy = "the log of the replica has more: /tmp/ray/session_latest/logs/serve"
            raise UserError(f"the service does not start: {cause}", remedy)
        for line in sorted(news - said):
            print(line, flush=True)
        said |= news
        time.sleep(0.2)
    remedy = "add nodes, or ask for less with embedder.cpus=..., recall.cpus=..., writer.cpus=..."
    raise UserError(f"{name} does not run after {START_S:.0f} s: {'; '.join(sorted(said))}", remedy)


def _last_lines(status: ApplicationStatusOverview) -> Iterator[tuple[str, str]]:
    """What Serve says of each deployment that is not well: of a traceback the error."""
    for part, each in status.deployments.items():
        if lines := [line for line in each.message.splitlines() if line.strip()]:
            yield part, lines[-1].strip()


def url_of(host: str, port: int) -> str:
    """Where a client on this machine reaches it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def example(url: str) -> str:
    body = json.dumps({"query": "happy cat", "k": 5})
    return f"curl {url}/v1/search -H 'Content-Type: application/json' -d '{body}'"


def _check_port(host: str, port: int) -> None:
    """Serve's proxies share a port with whoever allows it, so this is found out before they start."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        problem = f"cannot listen on {host}:{port}: {error.strerror}"
        raise UserError(problem, "choose another --port or --host") from error
