"""Linears for few rows: joined where they read the same input, packed for the CPU, narrowed when asked.

Measured on two Zen 5 cores (AVX-512, 2 threads, 8 rows, the linears of bench-30m's layers, fp32): MKL through nn.Linear
7.0 ms a step, oneDNN with packed weights 2.7 ms; at 64 rows 19 and 8.6.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from adgen.errors import SettingsError
from adgen.generation.engine_settings import WeightType
from adgen.model.uniadgen import UniAdGen

Prepare = Callable[[nn.Module], nn.Module]
"""Lays out a linear; what is not a plain one (a rank's part of a sum) is returned as it is."""


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


def packed(linear: nn.Module, num_rows: int) -> nn.Module:
    """The linear laid out for num_rows rows on a CPU; as it is on other devices."""
    if type(linear) is not nn.Linear or not can_pack(linear.weight):
        return linear
    return PackedLinear(linear.weight, linear.bias, num_rows)


def narrowed(linear: nn.Module, weights: WeightType, config: object) -> nn.Module:
    """The linear with weights of eight bits, activations as they are; through torchao, in place."""
    if type(linear) is nn.Linear:
        from torchao.quantization import quantize_

        quantize_(linear, config, filter_fn=lambda module, name: module is linear)
    return linear


def prepare_heads(model: UniAdGen, prepare: Prepare) -> None:
    """Lay out the weights that each step uses in addition to the layers: text head and image head."""
    model.decoder.lm_head = prepare(model.decoder.lm_head)
    head = model.image_head
    head.output_mlp_projector = prepare(head.output_mlp_projector)
    head.vision_head = prepare(head.vision_head)


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
