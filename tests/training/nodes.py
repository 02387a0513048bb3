"""A Ray cluster of several nodes on this machine, for the trials that take nodes away.

python -m tests.training.nodes   # prints its address; on stdin: `add`, `kill`, and at its end the cluster stops
The head has no CPU, every other node has two: room for one worker, and none for its data tasks.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 6}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=2))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
