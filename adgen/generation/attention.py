"""One decoding step's attention: rotate the new tokens, append them to the cache, look at all of it.

A row's cost follows the tokens that it really holds, and its result depends on them alone, bit for bit: neither on its
neighbours nor on the cache's capacity. Three ways to the same numbers: C on a CPU, Triton on a GPU, and torch anywhere,
which says what the other two compute.

Shapes: R rows, H heads, G key/value heads, E head size, W = (H + 2G) E.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from adgen.generation.caches import CfgBranch
from adgen.generation.kernels import cpu
from adgen.model.decoder import split_heads


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, branches: Sequence[CfgBranch], layer: int) -> Tensor:
    """qkv (R, W) of the branches' rows one after another, cos and sin (R, E) -> attention (R, H*E).

    Keys and values are written after each row's length. `CfgBranch.advance` raises the length after the last layer. The output
    of a waiting row is undefined.
    """
    kernel = None if branches[0].plain else attention_kernel(qkv.device, cos.shape[-1])
    if kernel is None:
        return _branch_by_branch(attend_torch, qkv, cos, sin, branches, layer)
    return kernel(qkv, cos, sin, branches, layer)


def attention_kernel(device: torch.device, head_size: int) -> Callable | None:
    """The kernel for a device, which takes what `attend` takes; None: the plain way is the only one."""
    if device.type == "cuda":
        from adgen.generation.kernels.gpu_attention import attend_gpu

        return partial(_branch_by_branch, attend_gpu)
    return attend_cpu if cpu.library() and head_size <= cpu.MAX_HEAD_SIZE else None


def _branch_by_branch(
    attend_branch: Callable, qkv: Tensor, cos: Tensor, sin: Tensor, branches: Sequence[CfgBranch], layer: int
) -> Tensor:
    outs, first = [], 0
    for branch in branches:
        rows = slice(first, first + len(branch.offsets))
        outs.append(attend_branch(qkv[rows], cos[rows], sin[rows], branch, layer))
        first = rows.stop
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def attend_torch(qkv: Tensor, cos: Tensor, sin: Tensor, branch: CfgBranch, layer: int) -> Tensor:
    """The plain way, row by row."""
    keys, values = branch.cache.keys[layer], branch.cache.values[layer]
    q, k, v = split_heads(qkv, cos, sin, keys.shape[1])
    lengths = branch.cache.lengths.tolist()
    out = torch.zeros_like(q)
    for row, length in enumerate(lengths):
        if not branch.active[row]:
            continue
        keys[row, :, length], values[row, :, length] = k[row].to(keys.dtype), v[row].to(values.dtype)
        seen = [(keys[row, :, : length + 1], values[row, :, : length + 1])]
        if branch.prefix is not None:
            seen.insert(0, (branch.prefix.keys[layer][0], branch.prefix.values[layer][0]))
        all_keys, all_values = (torch.cat(parts, dim=1).to(q.dtype) for parts in zip(*seen, strict=True))
        out[row] = F.scaled_dot_product_attention(
            q[row][None, :, None], all_keys[None], all_values[None], enable_gqa=q.shape[1] != keys.shape[1]
        )[0, :, 0]
    return out.flatten(1)


def attend_cpu(qkv: Tensor, cos: Tensor, sin: Tensor, branches: Sequence[CfgBranch], layer: int) -> Tensor:
    """The C kernel, over branches that share no cache; arithmetic in fp32 whatever the dtypes."""
    head_size = cos.shape[-1]
    fresh = qkv.float().contiguous()
    plan = _plan(branches, layer, heads := fresh.shape[1] // head_size)
    num_queries = heads - 2 * plan[0].groups
    out = torch.empty(len(fresh), num_queries * head_size)
    first = 0
    for branch in plan:
        branch.qkv = fresh.data_ptr() + first * heads * head_size * 4
        branch.out = out.data_ptr() + first * num_queries * head_size * 4
        branch.cosine = cos.data_ptr() + first * head_size * 4
        branch.sine = sin.data_ptr() + first * head_size * 4
        first += branch.rows
    cpu.attend(plan, branches[0].cache.keys[layer].dtype)
    return out.to(qkv.dtype)


def _plan(branches: Sequence[CfgBranch], layer: int, heads: int) -> ctypes.Array:
    """The kernel's arguments that do not change from step to step; kept in the first branch while the tensors keep their place."""
    places = [(*_places(branch, layer), len(branch.offsets)) for branch in branches]
    known = branches[0].plans.get(layer)
    if known is None or known[0] != places:
        known = (places, (cpu.Attention * len(branches))(*(branch_arguments(branch, layer, heads) for branch in branches)))
        branches[0].plans[layer] = known
    return known[1]


def _places(branch: CfgBranch, layer: int) -> tuple[int, ...]:
    return (
        branch.cache.keys[layer].data_ptr(),
        branch.cache.values[layer].data_ptr(),
        branch.cache.lengths.data_ptr(),
        branch.active.data_ptr(),
        branch.prefix.keys[layer].data_ptr() if branch.prefix else 0,
        branch.num_shared,
        *branch.cache.keys[layer].shape,
    )


def branch_arguments(branch: CfgBranch, layer: int, heads: int) -> cpu.Attention:
    """The C kernel's arguments of a branch's rows in a layer, but for what a step computes: pointers to tensors that must stay.
    heads: of queries, keys and values together."""
    keys, prefix = branch.cache.keys[layer], branch.prefix
    rows, groups, capacity, head_size = keys.shape
    return cpu.Attention(
        keys=keys.data_ptr(),
        values=branch.cache.values[layer].data_ptr(),
        prefix_keys=prefix.keys[layer].data_ptr() if prefix else None,
        prefix_values=prefix.values[layer].data_ptr() if prefix else None,
        lengths=branch.cache.lengths.data_ptr(),
        active=branch.active.data_ptr(),
        rows=rows,
        heads=heads - 2 * groups,
        groups=groups,
        width=head_size,
        capacity=capacity,
        num_shared=branch.num_shared,
        scale=head_size**-0.5,
    )
