"""One decoding step's attention: rotate the new tokens, append them to the cache, look at all of it.

A row's cost follows the tokens that it really holds, and its result depends on them alone, bit for bit: neither on its
neighbours nor on the cache's capacity. Three ways to the same numbers: C on a CPU, Triton on a GPU, and torch anywhere,
which says what the other two compute.

Shapes: R rows, H heads, G key/value heads, E head size, W = (H + 2G) E.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adgen.generation.caches import Half
from adgen.generation.kernels import cpu
from adgen.model.decoder import rotate


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, halves: Sequence[Half], layer: int) -> Tensor:
    """qkv (R, W) of the halves' rows one after another, cos and sin (R, E) -> attention (R, H*E).

    Keys and values are written behind each row's length, which `Half.advance` moves once all layers are done. What comes
    out for a row that waits means nothing.
    """
    head_size = cos.shape[-1]
    if qkv.device.type == "cuda":
        from adgen.generation.kernels.gpu_attention import attend_gpu as attend_half
    elif cpu.library() and head_size <= cpu.MAX_HEAD_SIZE:
        attend_half = attend_cpu
    else:
        attend_half = attend_torch
    outs, first = [], 0
    for half in halves:
        rows = slice(first, first + len(half.offsets))
        outs.append(attend_half(qkv[rows], cos[rows], sin[rows], half, layer))
        first = rows.stop
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def attend_torch(qkv: Tensor, cos: Tensor, sin: Tensor, half: Half, layer: int) -> Tensor:
    """The plain way, row by row."""
    keys, values = half.cache.keys[layer], half.cache.values[layer]
    q, k, v = split_heads(qkv, cos, sin, keys.shape[1])
    lengths = half.cache.lengths.tolist()
    out = torch.zeros_like(q)
    for row, length in enumerate(lengths):
        if not half.active[row]:
            continue
        keys[row, :, length], values[row, :, length] = k[row].to(keys.dtype), v[row].to(values.dtype)
        seen = [(keys[row, :, : length + 1], values[row, :, : length + 1])]
        if half.prefix is not None:
            seen.insert(0, (half.prefix.keys[layer][0], half.prefix.values[layer][0]))
        all_keys, all_values = (torch.cat(parts, dim=1).to(q.dtype) for parts in zip(*seen, strict=True))
        out[row] = F.scaled_dot_product_attention(
            q[row][None, :, None], all_keys[None], all_values[None], enable_gqa=q.shape[1] != keys.shape[1]
        )[0, :, 0]
    return out.flatten(1)


def attend_cpu(qkv: Tensor, cos: Tensor, sin: Tensor, half: Half, layer: int) -> Tensor:
    """The C kernel; arithmetic in fp32 whatever the dtypes."""
    keys, prefix = half.cache.keys[layer], half.prefix
    rows, groups, capacity, head_size = keys.shape
    heads = qkv.shape[1] // head_size - 2 * groups
    fresh = qkv.float().contiguous()
    out = torch.empty(rows, heads * head_size)
    arguments = cpu.Attention(
        qkv=fresh.data_ptr(),
        cosine=cos.data_ptr(),
        sine=sin.data_ptr(),
        out=out.data_ptr(),
        keys=keys.data_ptr(),
        values=half.cache.values[layer].data_ptr(),
        prefix_keys=prefix.keys[layer].data_ptr() if prefix else None,
        prefix_values=prefix.values[layer].data_ptr() if prefix else None,
        lengths=half.cache.lengths.data_ptr(),
        active=half.active.data_ptr(),
        rows=rows,
        heads=heads,
        groups=groups,
        width=head_size,
        capacity=capacity,
        num_shared=half.num_shared,
        scale=head_size**-0.5,
    )
    cpu.attend(arguments, keys.dtype)
    return out.to(qkv.dtype)


def split_heads(qkv: Tensor, cos: Tensor, sin: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (R, W) -> rotated queries (R, H, E), rotated keys and plain values (R, G, E)."""
    heads = qkv.unflatten(-1, (-1, cos.shape[-1]))
    q, k, v = heads.split((heads.shape[1] - 2 * num_groups, num_groups, num_groups), dim=1)
    return rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None]), v
