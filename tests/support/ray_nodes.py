"""A Ray cluster of n nodes: prints its address, then for each line read kills the newest node and prints what ran there
(for `add`: adds a node and prints []; for `kill busy`: kills it only where something runs there); ends with its input."""

import json
import sys
from contextlib import suppress

import psutil
from ray.cluster_utils import Cluster

WORK = ("Map(", "_plan_bucket", "_Encode", "commit_carried")  # in the titles of workers that do a refresh's work


def stages_on(node) -> list[str]:
    """The titles of workers on the node that do a refresh's work."""
    [raylet] = [info.process for info in node.all_processes["raylet"]]
    titles = set()
    for worker in psutil.Process(raylet.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            titles.add(" ".join(worker.cmdline()).strip())
    return sorted(title for title in titles if title.startswith("ray::") and any(name in title for name in WORK))


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(int(sys.argv[1]) - 1):
        cluster.add_node(num_cpus=2)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            cluster.add_node(num_cpus=2)
            print("[]", flush=True)
            continue
        newest = cluster.list_all_nodes()[-1]
        stages = stages_on(newest)
        if stages or line.strip() != "kill busy":
            cluster.remove_node(newest, allow_graceful=False)
        print(json.dumps(stages), flush=True)
    cluster.shutdown()
