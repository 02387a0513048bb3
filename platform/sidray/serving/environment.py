"""How Ray Serve runs the service: HAProxy in front, replicas in throughput mode. Light: Serve is not imported here.

    serve_environment()      # before Ray starts and before `ray.serve` is imported; what the operator set stays

Measured by jobs/bench/serving.py; cluster manifests carry the same variables (SERVE_ENVIRONMENT).
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from sidray.cluster import free_port

SERVE_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


def serve_environment() -> None:
    """For a cluster that this process starts: HAProxy's files and ports are its own, and so is the port of Serve's
    proxy behind it, which is asked while there is no gateway: two services on one machine do not meet."""
    # Not in TMPDIR: a socket's path has at most 97 characters, and Ray adds the 56 of the node's id.
    folder = tempfile.mkdtemp(prefix="sidray-haproxy-", dir="/tmp")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # 30 is for proxies on other nodes
    }
    for name, value in (SERVE_ENVIRONMENT | own).items():
        os.environ.setdefault(name, value)
