"""`sidray serve RUN`: the service of a finished run on this machine, or on the cluster of RAY_ADDRESS, until Ctrl-C.

A cluster that serves for good takes `serve deploy serve/search.yaml` instead.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve import Application

from sidray.cluster import ray_cluster
from sidray.errors import UserError
from sidray.serving.app import build_app

NAME = "sidray"


def serve_run(run: str, variant: str, host: str, port: int) -> None:
    """Serves until Ctrl-C or SIGTERM. UserError for a run that is none, a port in use, and a cluster that serves."""
    try:
        with running_service(run, variant, host, port) as url:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own when it started
            print(f"serving {run} at {url}   (Ctrl-C ends it)\n{example(url)}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")


@contextmanager
def running_service(run: str, variant: str, host: str, port: int) -> Iterator[str]:
    """The service for the block; yields its URL."""
    app = build_app({"run": run, "variant": variant})
    _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's; replicas log as ever
    with ray_cluster():
        if serve.status().proxies:
            remedy = "deploy there with `serve deploy serve/search.yaml`, or end it with `serve shutdown`"
            raise UserError("this Ray cluster runs Serve already", remedy)
        try:
            serve.start(http_options={"host": host, "port": port})
            _deploy(app)
            yield url_of(host, port)
        finally:
            serve.shutdown()


def _deploy(app: Application) -> None:
    """UserError with the cause when a replica cannot start: Serve's own error does not have it."""
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[NAME].deployments
        for name, status in deployments.items():
            if lines := [line for line in status.message.splitlines() if line.strip()]:
                remedy = "the log of the replica has more: /tmp/ray/session_latest/logs/serve"
                raise UserError(f"{name} does not start: {lines[-1].strip()}", remedy) from error
        raise


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
