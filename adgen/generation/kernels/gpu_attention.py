"""Decode attention on a GPU, in Triton: a query looks at a long cache, and only at the tokens that are really in it.

One program takes one row, one key/value head and one stretch of its tokens; programs after a row's end return immediately, so
the cost follows the lengths, which stay on the device (nothing here is read back: the step can be captured). Where rows
and heads alone do not fill the GPU, the tokens are cut into stretches whose softmaxes are put together afterwards
(flash-decoding, Dao et al. 2023). A stretch's length depends on the batch's shape alone, so a row's bits never depend on its
neighbours.

The kernel's numbers are tested on CPUs with Triton's interpreter.

Shapes: R rows, H heads, G key/value heads, Q = H/G heads a group, E head size, K capacity, S stretches.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from adgen.generation.caches import CfgBranch

_BLOCK = 64  # tokens that one loop step reads
_PROGRAMS_PER_PROCESSOR = 4  # enough to hide the latency of memory
_STRETCHES = (4096, 2048, 1024, 512, 256, 128)  # from few to many programs: a part too short does not pay
_USUAL_TOKENS = 4096


@triton.jit
def _look(
    q, keys, values, prefix_keys, prefix_values, lengths, active, out, tops, sums,
    num_shared, capacity, stretch, scale,
    G: tl.constexpr, Q: tl.constexpr, E: tl.constexpr, S: tl.constexpr, QP: tl.constexpr, EP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """q (R, G, Q, E) -> out (R, G, S, Q, E), tops and sums (R, G, S, Q): a stretch's softmax, not yet put together.

    Token t of a row is prefix token t, or token t - num_shared of its own cache. QP and EP are Q and E rounded up to powers
    of two.
    """
    row, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.where(tl.load(active + row), num_shared + tl.load(lengths + row) + 1, 0)
    begin = part * stretch
    end = tl.minimum(begin + stretch, length)
    width, heads = tl.arange(0, EP), tl.arange(0, QP)
    inside = (heads[:, None] < Q) & (width[None, :] < E)
    query = (
        tl.load(q + ((row * G + group) * Q + heads[:, None]) * E + width[None, :], mask=inside, other=0.0).to(tl.float32) * scale
    )
    top = tl.full((QP,), -1.0e30, tl.float32)
    total = tl.zeros((QP,), tl.float32)
    result = tl.zeros((QP, EP), tl.float32)
    own, shared = (row * G + group) * capacity, group * num_shared
    for first in range(begin, end, BLOCK):
        token = first + tl.arange(0, BLOCK)
        is_prefix, is_own = token < num_shared, (token >= num_shared) & (token < end)
        here = width[None, :] < E
        at_own = (own + token - num_shared)[:, None] * E + width[None, :]
        at_prefix = (shared + token)[:, None] * E + width[None, :]
        key = tl.load(keys + at_own, mask=is_own[:, None] & here, other=0.0).to(tl.float32)
        value = tl.load(values + at_own, mask=is_own[:, None] & here, other=0.0).to(tl.float32)
        if first < num_shared:
            in_prefix = (is_prefix & (token < end))[:, None] & here
            key += tl.load(prefix_keys + at_prefix, mask=in_prefix, other=0.0).to(tl.float32)
            value += tl.load(prefix_values + at_prefix, mask=in_prefix, other=0.0).to(tl.float32)
        scores = tl.sum(query[:, None, :] * key[None, :, :], axis=2)  # (QP, BLOCK)
        scores = tl.where((token < end)[None, :], scores, -1.0e30)
        highest = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - highest[:, None])
        weights = tl.where((token < end)[None, :], weights, 0.0)
        shrink = tl.exp(top - highest)
        total = total * shrink + tl.sum(weights, axis=1)
        result = result * shrink[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], axis=1)
        top = highest
    at = ((row * G + group) * S + part) * Q + heads
    tl.store(tops + at, top, mask=heads < Q)
    tl.store(sums + at, total, mask=heads < Q)
    tl.store(out + at[:, None] * E + width[None, :], result, mask=inside)


def attend_gpu(qkv: Tensor, cos: Tensor, sin: Tensor, branch: CfgBranch, layer: int) -> Tensor:
    """As `attention.attend_torch`; rows that wait get zeros."""
    from adgen.model.decoder import split_heads

    keys, values = branch.cache.keys[layer], branch.cache.values[layer]
    q, k, v = split_heads(qkv, cos, sin, keys.shape[1])
    _append(keys, k, branch)
    _append(values, v, branch)
    return look(q, branch, layer).to(qkv.dtype)


def look(q: Tensor, branch: CfgBranch, layer: int, stretch: int | None = None) -> Tensor:
    """Rotated queries (R, H, E) over the tokens of the cache, the newest included -> (R, H*E) fp32."""
    keys, prefix = branch.cache.keys[layer], branch.prefix
    rows, groups, capacity, size = keys.shape
    per_group = q.shape[1] // groups
    most = branch.num_shared + capacity
    stretch = stretch or _stretch(rows * groups, _processors(q.device))
    parts = -(-most // stretch)
    out = torch.empty(rows, groups, parts, per_group, size, device=q.device, dtype=torch.float32)
    tops, sums = (torch.empty(rows, groups, parts, per_group, device=q.device, dtype=torch.float32) for _ in range(2))
    shared = (keys, branch.cache.values[layer]) if prefix is None else (prefix.keys[layer], prefix.values[layer])
    _look[(rows, groups, parts)](
        q.contiguous(), keys, branch.cache.values[layer], *shared, branch.cache.lengths, branch.active, out, tops, sums,
        branch.num_shared, capacity, stretch, size**-0.5,
        G=groups, Q=per_group, E=size, S=parts, QP=triton.next_power_of_2(per_group), EP=triton.next_power_of_2(size), BLOCK=_BLOCK,
    )  # fmt: skip
    share = (tops - tops.amax(2, keepdim=True)).exp()  # (R, G, S, Q); a stretch without tokens has sum 0
    # One after another: stretches that a larger cache adds are zeros, and must not regroup the sums of the others.
    total, result = torch.zeros_like(sums[:, :, 0]), torch.zeros_like(out[:, :, 0])
    for part in range(parts):
        total = total + sums[:, :, part] * share[:, :, part]
        result = result + out[:, :, part] * share[:, :, part, :, None]
    return (result / total.clamp_min(1e-30)[..., None]).flatten(1)


def _append(cached: Tensor, fresh: Tensor, branch: CfgBranch) -> None:
    """Write (R, G, E) after each row's tokens; a waiting row's own last place is written too, and never read."""
    at = branch.cache.lengths[:, None, None, None].expand(-1, fresh.shape[1], 1, fresh.shape[2])
    if cached.dtype.itemsize == 1:  # scatter knows no float8: move its bytes
        cached, fresh = cached.view(torch.uint8), fresh.clamp(-448, 448).to(cached.dtype).view(torch.uint8)
    cached.scatter_(2, at, fresh[:, :, None].to(cached.dtype))


def _stretch(programs: int, processors: int) -> int:
    """Tokens that one program takes. It follows from the engine's shapes and its GPU alone, and not from the cache's
    capacity, which a neighbour's long prompt may enlarge: a row's bits would change with it."""
    for stretch in _STRETCHES:
        if programs * (_USUAL_TOKENS // stretch) >= processors * _PROGRAMS_PER_PROCESSOR:
            break
    return stretch


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
