"""A cache with rows of several lengths, and what a decoder step brings them: what each attention kernel is given."""

import torch

from adgen.generation.caches import CfgBranch, empty_cache
from adgen.model.decoder import KeyValueCache, rope_angles

LENGTHS = (0, 1, 63, 64, 65, 200)


def filled(cache: KeyValueCache, generator: torch.Generator) -> KeyValueCache:
    for tensor in cache.keys + cache.values:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return cache


def example(cache_type: torch.dtype, heads: int = 4, groups: int = 2, head_size: int = 32, shared: int = 0, seed: int = 0):
    """A branch of six rows with `LENGTHS` tokens, one of which waits, and what a step brings them."""
    generator = torch.Generator().manual_seed(seed)
    cpu_device = torch.device("cpu")
    cache = filled(empty_cache(2, len(LENGTHS), groups, 201, head_size, cpu_device, cache_type), generator)
    cache.lengths.copy_(torch.tensor(LENGTHS))
    prefix = None
    if shared:
        prefix = filled(empty_cache(2, 1, groups, shared, head_size, cpu_device, cache_type), generator)
    active = torch.ones(len(LENGTHS), dtype=torch.bool)
    active[2] = False
    branch = CfgBranch(cache, torch.full((len(LENGTHS),), shared), active, prefix)
    qkv = torch.randn(len(LENGTHS), (heads + 2 * groups) * head_size, generator=generator)
    cos, sin = rope_angles(branch.positions()[:, None], head_size, 10000.0)
    return branch, qkv, cos[:, 0, 0].contiguous(), sin[:, 0, 0].contiguous()
