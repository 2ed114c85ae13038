"""Linears for few rows, and a decoder layer of them: joined where they read the same input, laid out for the CPU, narrowed when
asked.

In fp32 a CPU has its weights in panels (`kernels/layers.c`), which a whole step reads in one call. Other dtypes, and machines
without a compiler, have them as oneDNN packs them.
"""

import warnings
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.errors import SettingsError
from adgen.generation.engine_settings import WeightType
from adgen.generation.kernels import cpu
from adgen.model.decoder import DecoderLayer
from adgen.model.uniadgen import UniAdGen


class Prepare(Protocol):
    """Lays out a linear; what is not a plain one (a rank's part of a sum) stays as it is."""

    def __call__(self, linear: nn.Module, gated: bool = False) -> nn.Module:
        """gated: its outputs are gates, then ups, and silu(gate) * up is wanted."""
        ...


class PanelLinear(nn.Module):
    """y = x W^T + b in fp32 with W in the kernel's panels; the plain weight is not kept. gated: W is gates above ups, and y is
    silu(gate) * up."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gated: bool = False):
        super().__init__()
        outputs, inputs = weight.shape
        self.out_features = outputs // (1 + gated)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.panels = _panels(weight.detach(), gated)
        self.arguments = cpu.Linear(
            self.panels.data_ptr(), None if self.bias is None else self.bias.data_ptr(), inputs, self.out_features, gated
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.out_features)
        cpu.linear(self.arguments, x, out)
        return out


def _panels(weight: Tensor, gated: bool) -> Tensor:
    """(out, in) -> (panels, in, width of a panel), zeros where a panel is not full."""
    width = cpu.panel_width() // (1 + gated)
    parts = [F.pad(part, (0, 0, 0, -len(part) % width)).unflatten(0, (-1, width)) for part in weight.chunk(1 + gated)]
    return torch.cat(parts, dim=1).transpose(1, 2).contiguous()


class GatedLinear(nn.Module):
    """silu(gate) * up of a linear whose outputs are gates, then ups."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        gate, up = self.linear(x).chunk(2, dim=-1)
        return F.silu(gate) * up


class PackedLinear(nn.Module):
    """y = x W^T + b with W in oneDNN's own layout; the plain weight is not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None, num_rows: int):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def preparation(weights: WeightType, num_rows: int) -> Prepare:
    """How linears are laid out for steps of num_rows rows. SettingsError when narrow weights need a missing package."""
    return partial(packed, num_rows=num_rows) if weights == "same" else partial(narrowed, weights=weights, config=_narrow(weights))


def joined(*linears: nn.Module) -> nn.Linear:
    """Linears of one input as one, outputs side by side. The weights move: the old linears are left empty."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear in linears:
        linear.weight = None
    return _linear(weight)


class StepLayer(nn.Module):
    """One layer: norms as they are, q/k/v and gate/up joined."""

    def __init__(self, layer: DecoderLayer, prepare: Prepare):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_size = attention.head_size
        self.num_groups = attention.k_proj.weight.shape[0] // self.head_size
        self.num_heads = attention.q_proj.weight.shape[0] // self.head_size
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = prepare(joined(attention.q_proj, attention.k_proj, attention.v_proj))
        self.out = prepare(attention.o_proj)
        self.gated = prepare(joined(mlp.gate_proj, mlp.up_proj), gated=True)
        self.down = prepare(mlp.down_proj)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x (R, D) plus its SwiGLU."""
        return x + self.down(self.gated(self.mlp_norm(x)))


def packed(linear: nn.Module, gated: bool = False, *, num_rows: int) -> nn.Module:
    """The linear laid out for num_rows rows on a CPU; as it is on other devices."""
    if can_panel(linear):
        return PanelLinear(linear.weight, linear.bias, gated)
    if type(linear) is nn.Linear and can_pack(linear.weight):
        linear = PackedLinear(linear.weight, linear.bias, num_rows)
    return GatedLinear(linear) if gated else linear


def narrowed(linear: nn.Module, gated: bool = False, *, weights: WeightType, config: object) -> nn.Module:
    """The linear with weights of eight bits, activations as they are; through torchao, in place."""
    if type(linear) is nn.Linear:
        from torchao.quantization import quantize_

        quantize_(linear, config, filter_fn=lambda module, name: module is linear)
    return GatedLinear(linear) if gated else linear


def prepare_heads(model: UniAdGen, prepare: Prepare) -> None:
    """Lay out the weights that each step uses in addition to the layers: text head and image head."""
    model.decoder.lm_head = prepare(model.decoder.lm_head)
    head = model.image_head
    head.output_mlp_projector = prepare(head.output_mlp_projector)
    head.vision_head = prepare(head.vision_head)


def can_panel(linear: nn.Module) -> bool:
    """Whether the linear may lie in panels: a plain one in fp32 on a CPU with the C kernels."""
    if type(linear) is not nn.Linear:
        return False
    return linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32 and cpu.library() is not None


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a packed form for it here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if weight.dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return weight.dtype == torch.float32


def _narrow(weights: WeightType) -> object:
    """torchao's configuration."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise SettingsError(f"engine.weights {weights} needs the package torchao (pip install adgen[narrow]): {error}") from None
    return Int8WeightOnlyConfig() if weights == "int8" else Float8WeightOnlyConfig()


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
