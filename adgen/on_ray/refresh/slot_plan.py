"""One number of slots for a whole run: what the cluster's smallest GPU holds.

How many a GPU holds is computed in adgen/generation/slots_per_device.py; here the GPUs are asked for their memory.
"""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adgen.generation.engine_settings import CPU_SLOTS
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.refresh.settings import RefreshSettings

PROBE_GPU_SHARE = 0.01  # of a GPU: enough to see it


def plan_slots(settings: RefreshSettings, model: ModelDirectory, device: str) -> int:
    """engine.num_slots as set, else what the smallest GPU of the cluster holds, by the sizes of model and prompts."""
    if settings.engine.num_slots is not None:
        return settings.engine.num_slots
    if device != "cuda":
        return CPU_SLOTS
    from adgen.generation.slots_per_device import row_capacity

    capacity = row_capacity(model.config, model.prompter, settings.sampling.of(model.sampling))
    return settings.engine.slots_in(smallest_memory(), model.config, capacity)


def smallest_memory() -> int:
    """Bytes of the smallest GPU of the nodes that are there now; one that joins later and is smaller halves its slots."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    # None yet, on a cluster that grows on demand: one task without a place brings one up.
    here = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes] or ["DEFAULT"]
    return min(ray.get([_gpu_memory.options(scheduling_strategy=place).remote() for place in here]))


@ray.remote(num_cpus=0, num_gpus=PROBE_GPU_SHARE)
def _gpu_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory
