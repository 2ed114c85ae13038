"""Keys and values in float8: powers of two that keep each head's inside float8's range, folded into the weights.

float8 e4m3 keeps its relative precision between 2^-6 and 448 whatever the scale, so a scale can't make a number in that range any
better; it can only bring a head into it. A power of two a head does that without a rounding: keys shrink and queries grow by it,
values shrink and the columns of the output projection grow. No kernel knows of it.
"""

import torch
from torch import Tensor, nn

from adgen.model.decoder import DecoderLayer

_SMALLEST, _LARGEST = 2.0**-3, 2.0**5
"""Root mean squares of a head that need no scale: 14 times the larger is 448, an eighth of the smaller is 2^-6."""


@torch.no_grad()
def fold_cache_scales(layer: DecoderLayer) -> None:
    """Scale the layer's projections so that no head's keys or values are far from one; what the layer computes stays the same.

    How large they are is taken from the weights: inputs are normed, so an output's mean square is about its row's squared norm.
    """
    attention, gain = layer.self_attn, layer.input_layernorm.weight
    size = attention.head_size
    keys, values = (_scales(linear.weight, gain, size) for linear in (attention.k_proj, attention.v_proj))
    heads_a_group = attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]
    of_rows = lambda scales, times=1: scales.repeat_interleave(size * times)  # noqa: E731
    _multiply(attention.k_proj, of_rows(keys)[:, None])
    _multiply(attention.q_proj, 1 / of_rows(keys, heads_a_group)[:, None])
    _multiply(attention.v_proj, of_rows(values)[:, None])
    _multiply(attention.o_proj, 1 / of_rows(values, heads_a_group)[None])


def _scales(weight: Tensor, gain: Tensor, head_size: int) -> Tensor:
    """Of each head (G,), from its rows (G * E, D): one where its size needs none."""
    squares = (weight.float() * gain.float()).square().sum(1).unflatten(0, (-1, head_size)).mean(1)
    sizes = squares.sqrt().clamp(2.0**-60, 2.0**60)
    fits = (sizes >= _SMALLEST) & (sizes <= _LARGEST)
    return torch.where(fits, 0, -sizes.log2().round()).exp2()


def _multiply(linear: nn.Module, scales: Tensor) -> None:
    if not bool((scales == 1).all()):
        # Not in place: another model may hold the same tensor.
        linear.weight = nn.Parameter((linear.weight * scales).to(linear.weight.dtype), requires_grad=False)
