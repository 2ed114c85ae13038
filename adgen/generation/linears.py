"""Linears for few rows: joined where they read the same input, and packed for the CPU.

Measured on two Zen 5 cores (AVX-512, 2 threads, 8 rows, the linears of bench-30m's layers, fp32): MKL through nn.Linear
7.0 ms a step, oneDNN with packed weights 2.7 ms; at 64 rows 19 and 8.6.
"""

import torch
from torch import Tensor, nn

from adgen.model.uniadgen import UniAdGen


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


def joined(*linears: nn.Module) -> nn.Linear:
    """Linears of one input as one, outputs side by side. The weights move: the old linears are left empty."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear in linears:
        linear.weight = None
    return _linear(weight)


def packed(linear: nn.Module, num_rows: int) -> nn.Module:
    """The linear laid out for num_rows rows on a CPU; as it is on other devices, or when it does more than multiply."""
    if type(linear) is not nn.Linear or not can_pack(linear.weight):
        return linear
    return PackedLinear(linear.weight, linear.bias, num_rows)


def pack_heads(model: UniAdGen, num_rows: int) -> None:
    """Lay out the weights that are used each step beside the layers: text head and image head."""
    model.decoder.lm_head = packed(model.decoder.lm_head, num_rows)
    head = model.image_head
    head.output_mlp_projector = packed(head.output_mlp_projector, num_rows)
    head.vision_head = packed(head.vision_head, num_rows)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a packed form for it here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if weight.dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return weight.dtype == torch.float32


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
