"""The fields of KubeRay's resources (ray.io/v1, KubeRay 1.6 and newer) that our manifests use, with their types.

    assert complaints(manifest["spec"], SPECS["RayJob"]) == []

A field that is not here is a slip, or is to be looked up in KubeRay's definitions and added. The Kubernetes API drops
unknown fields of these resources or refuses them; both are found too late.
"""

from __future__ import annotations

from typing import Any

ANY = object()  # checked elsewhere: pod templates and what is of the core API in them
STRINGS = object()  # a map of strings

_WORKERS = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": STRINGS,
    "template": ANY,
}
_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "gcsFaultToleranceOptions": {
        "redisAddress": str,
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": str, "key": str}}},
    },
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int, "resources": ANY, "securityContext": ANY},
    "headGroupSpec": {"rayStartParams": STRINGS, "template": ANY},
    "workerGroupSpecs": [_WORKERS],
}
SPECS: dict[str, Any] = {
    "RayCluster": {**_CLUSTER, "suspend": bool},
    "RayJob": {
        "suspend": bool,
        "submissionMode": str,
        "entrypoint": str,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": _CLUSTER,
    },
    "RayService": {
        "upgradeStrategy": {"type": str},
        "rayClusterDeletionDelaySeconds": int,
        "excludeHeadPodFromServeSvc": bool,
        "serveConfigV2": str,
        "rayClusterConfig": _CLUSTER,
    },
}


def complaints(value: Any, schema: Any, path: str = "spec") -> list[str]:
    """What does not fit: an unknown field or another type, with its path."""
    if schema is ANY:
        return []
    if schema is STRINGS:
        schema = dict.fromkeys(value, str) if isinstance(value, dict) else {}
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is a {type(value).__name__}, not a {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [each for i, item in enumerate(value) for each in complaints(item, schema[0], f"{path}.{i}")]
    if not isinstance(value, dict):
        return [f"{path} is no map"]
    found = [f"{path}.{key} is unknown" for key in value if key not in schema]
    return found + [
        each for key in value if key in schema for each in complaints(value[key], schema[key], f"{path}.{key}")
    ]
