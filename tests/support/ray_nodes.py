"""A Ray cluster of n nodes: prints its address, then for each line read kills the newest node and prints what ran there
(for `add`: adds a node and prints []); ends with its input."""

import json
import sys

import psutil
from ray.cluster_utils import Cluster


def stages_on(node) -> list[str]:
    """The stages whose workers the node's raylet has started."""
    [raylet] = [info.process for info in node.all_processes["raylet"]]
    titles = [" ".join(worker.cmdline()) for worker in psutil.Process(raylet.pid).children(recursive=True)]
    return sorted({stage for title in titles for stage in ("LookUp", "Generate", "FinishAndCommit") if f"Map({stage})" in title})


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
        cluster.remove_node(newest, allow_graceful=False)
        print(json.dumps(stages), flush=True)
    cluster.shutdown()
