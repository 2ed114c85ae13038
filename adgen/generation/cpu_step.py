"""One step of all layers as a single call of the C kernel: fp32 on a CPU, weights in panels.

Shapes: R rows, D hidden size, E head size, H heads, W = (H + 2G) E, I inner size, L additions.
"""

import ctypes
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adgen.generation.attention import branch_arguments
from adgen.generation.caches import CfgBranch
from adgen.generation.kernels import cpu
from adgen.generation.linears import PanelLinear, StepLayer
from adgen.model.decoder import RMSNorm


def can_run(layers: Sequence[StepLayer], norm: nn.Module) -> bool:
    """Whether each part of the layers, and the norm after them, is one that the kernel knows."""
    norms = [norm, *(each for layer in layers for each in (layer.input_norm, layer.mlp_norm))]
    linears = [linear for layer in layers for linear in (layer.qkv, layer.out, layer.gated, layer.down)]
    known = all(type(each) is RMSNorm and each.weight.dtype == torch.float32 for each in norms)
    return known and all(type(linear) is PanelLinear for linear in linears) and layers[0].head_size <= cpu.MAX_HEAD_SIZE


class CpuStep:
    """The arguments of a step of the rows of some branches, and the memory between its parts."""

    @torch.inference_mode(False)  # its memory is written to in any mode
    def __init__(self, layers: Sequence[StepLayer], norm: RMSNorm, interval: int, branches: Sequence[CfgBranch]):
        """norm: after the last layer. interval: additions go to the input of each interval-th layer."""
        rows, first = sum(len(branch.offsets) for branch in branches), layers[0]
        self._interval, self._final = interval, norm
        size = first.qkv.arguments.inputs
        make = lambda width: torch.empty(rows, width)  # noqa: E731
        self._cos, self._sin = make(first.head_size), make(first.head_size)
        self._x, self._normed, self._inner = make(size), make(size), make(first.gated.out_features)
        self._qkv, self._attended = make(first.qkv.out_features), make(first.num_heads * first.head_size)
        self._held = _tensors(branches)
        self._halves = [self._attentions(branches, index, layer) for index, layer in enumerate(layers)]
        self._layers = (cpu.Layer * len(layers))(*map(_layer, layers, self._halves))
        self._step = self._arguments(rows, size, branches)

    def fits(self, branches: Sequence[CfgBranch]) -> bool:
        """Whether the branches' tensors are still those that the arguments point to."""
        now = _tensors(branches)
        return len(now) == len(self._held) and all(map(operator.is_, self._held, now))

    def run(self, embeds: Tensor, cos: Tensor, sin: Tensor, additions: Tensor | None) -> Tensor:
        """embeds (R, D), cos and sin (R, E), additions (L, R, D) -> normed hidden states (R, D); branches do not advance."""
        self._cos.copy_(cos)
        self._sin.copy_(sin)
        embeds, out = embeds.contiguous(), torch.empty_like(self._x)
        additions = None if additions is None else additions.contiguous()
        self._step.embeds, self._step.out = embeds.data_ptr(), out.data_ptr()
        self._step.additions = None if additions is None else additions.data_ptr()
        cpu.step(self._step)
        return out

    def _attentions(self, branches: Sequence[CfgBranch], index: int, layer: StepLayer) -> ctypes.Array:
        made, first = (cpu.Attention * len(branches))(), 0
        for place, branch in enumerate(branches):
            rows = slice(first, first + len(branch.offsets))
            made[place] = branch_arguments(branch, index, layer.num_heads + 2 * layer.num_groups)
            made[place].qkv, made[place].out = self._qkv[rows].data_ptr(), self._attended[rows].data_ptr()
            made[place].cosine, made[place].sine = self._cos[rows].data_ptr(), self._sin[rows].data_ptr()
            first = rows.stop
        return made

    def _arguments(self, rows: int, size: int, branches: Sequence[CfgBranch]) -> cpu.Step:
        return cpu.Step(
            layers=ctypes.addressof(self._layers),
            final_norm=self._final.weight.data_ptr(),
            x=self._x.data_ptr(),
            normed=self._normed.data_ptr(),
            qkv=self._qkv.data_ptr(),
            attended=self._attended.data_ptr(),
            inner=self._inner.data_ptr(),
            num_layers=len(self._layers),
            num_halves=len(branches),
            cache_type=cpu.CACHE_TYPES[branches[0].cache.keys[0].dtype],
            rows=rows,
            size=size,
            interval=self._interval,
            final_eps=self._final.eps,
        )


def _tensors(branches: Sequence[CfgBranch]) -> list[Tensor]:
    """All that the arguments of attention point to; to hold them keeps their addresses theirs."""
    caches = [cache for branch in branches for cache in (branch.cache, branch.prefix) if cache is not None]
    held = [tensor for cache in caches for tensor in (*cache.keys, *cache.values, cache.lengths)]
    return held + [branch.active for branch in branches]


def _layer(layer: StepLayer, halves: ctypes.Array) -> cpu.Layer:
    return cpu.Layer(
        qkv=layer.qkv.arguments,
        out=layer.out.arguments,
        gate_up=layer.gated.arguments,
        down=layer.down.arguments,
        input_norm=layer.input_norm.weight.data_ptr(),
        mlp_norm=layer.mlp_norm.weight.data_ptr(),
        halves=ctypes.addressof(halves),
        input_eps=layer.input_norm.eps,
        mlp_eps=layer.mlp_norm.eps,
    )
