"""The decoder's layers as generation runs them: projections joined, weights laid out for few rows, one token a row a step.

Taken from a `Decoder` after DeepSpeed has seen it, so a layer may be one rank's share: heads are counted from widths, and
what a rank must sum up (o, down) stays the module that DeepSpeed made of it.

Shapes: R rows, T tokens, D hidden size, E head size, H heads, G key/value heads, W = (H + 2G) E.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.generation import cpu_step
from adgen.generation.attention import attend
from adgen.generation.cache_scales import fold_cache_scales
from adgen.generation.caches import CfgBranch, RowCache
from adgen.generation.linears import Prepare, StepLayer
from adgen.generation.slots_per_device import MAX_PREFILL_TOKENS
from adgen.model.decoder import Decoder, rope_angles, rotate


@dataclass(frozen=True)
class Rope:
    """cos and sin of every position, (P, E) fp32 each."""

    cos: Tensor
    sin: Tensor


class StepLayers(nn.Module):
    """All layers and the final norm. Takes the layers out of the decoder: a second copy of the weights would not fit."""

    def __init__(self, decoder: Decoder, prepare: Prepare, float8_cache: bool = False):
        """prepare: lays out each linear for the steps to come. float8_cache: keys and values must fit float8."""
        super().__init__()
        device = decoder.embed_tokens.weight.device
        self.interval = decoder.addition_interval
        self.norm = decoder.norm
        self.layers = nn.ModuleList()
        for index in range(len(decoder.layers)):
            if float8_cache:
                fold_cache_scales(decoder.layers[index])
            self.layers.append(StepLayer(decoder.layers[index], prepare))
            decoder.layers[index] = nn.Identity()  # free its weights before the next layer is joined
        positions = torch.arange(decoder.config.max_positions, device=device)[None]
        cos, sin = rope_angles(positions, decoder.config.head_size, decoder.config.rope_theta)
        self.rope = Rope(cos[0, 0], sin[0, 0])
        self._in_one_call = cpu_step.can_run(self.layers, self.norm)

    @property
    def num_groups(self) -> int:
        """Key/value heads that this rank holds."""
        return self.layers[0].num_groups

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.layers[0].head_size

    def step(self, x: Tensor, branches: Sequence[CfgBranch], additions: Tensor | None = None) -> Tensor:
        """Append one token to each row: x (R, D), the rows of all branches one after another -> normed hidden states (R, D).

        additions (L, R, D) go to the input of every interval-th layer. Nothing here waits for the device.
        """
        positions = torch.cat([branch.positions() for branch in branches])
        cos, sin = self.rope.cos[positions], self.rope.sin[positions]
        if self._in_one_call and not any(branch.plain for branch in branches):
            x = self._step_of(branches).run(x, cos, sin, additions)
        else:
            x = self._layer_by_layer(x, cos, sin, branches, additions)
        for branch in branches:
            branch.advance()
        return x

    def _step_of(self, branches: Sequence[CfgBranch]) -> "cpu_step.CpuStep":
        """The kernel's arguments, kept in the first branch while tensors keep their place."""
        known = branches[0].plans.get(("step", len(branches)))
        if known is None or not known.fits(branches):
            known = branches[0].plans["step", len(branches)] = cpu_step.CpuStep(self.layers, self.norm, self.interval, branches)
        return known

    def _layer_by_layer(
        self, x: Tensor, cos: Tensor, sin: Tensor, branches: Sequence[CfgBranch], additions: Tensor | None
    ) -> Tensor:
        for index, layer in enumerate(self.layers):
            if additions is not None and index % self.interval == 0:
                x = x + additions[index // self.interval]
            qkv = layer.qkv(layer.input_norm(x))
            x = x + layer.out(attend(qkv, cos, sin, branches, index))
            x = layer.feed_forward(x)
        return self.norm(x)

    def prefill(self, embeds: Tensor, row: RowCache) -> Tensor:
        """Append a prompt (T, D), T >= 1, to one row; the normed hidden state (D,) at its end.

        A row goes alone: no padding, and no neighbour changes its rounding.
        """
        last = embeds[-1]
        for chunk in embeds.split(MAX_PREFILL_TOKENS):
            last = self._prefill_chunk(chunk, row)
        return self.norm(last)

    def _prefill_chunk(self, x: Tensor, row: RowCache) -> Tensor:
        length, cached = len(x), row.length
        cos, sin = self.rope.cos[cached : cached + length], self.rope.sin[cached : cached + length]
        visible = torch.ones(length, cached + length, dtype=torch.bool, device=x.device).tril(cached)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.input_norm(x)).unflatten(-1, (-1, layer.head_size)).transpose(0, 1)
            q, k, v = qkv.split((layer.num_heads, layer.num_groups, layer.num_groups))
            row.append(index, rotate(k, cos, sin), v)
            keys, values = row.read(index, cached + length, x.dtype)
            q = rotate(q, cos, sin)
            out = F.scaled_dot_product_attention(
                q[None], keys[None], values[None], attn_mask=visible, enable_gqa=layer.num_heads != layer.num_groups
            )
            x = x + layer.out(out[0].transpose(0, 1).flatten(1))
            x = layer.feed_forward(x)
        row.grow(length)
        return x[-1]
