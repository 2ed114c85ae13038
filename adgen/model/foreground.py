"""Foreground perception: what the product looks like, as additions to some of the decoder's layers. docs/design.md 6.6, 6.7.

Everything here depends on the product alone, so it is computed once a product and handed on as one tensor.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import ModelConfig
from adgen.model.dinov2 import DINOv2

_CONDITION_PATCH = 16  # pixels of the condition picture per condition token, along one side


class ControlMLP(nn.Module):
    """fc2(gelu_tanh(fc1(x))) without biases: zeros in, zeros out."""

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.newfc1 = nn.Linear(input_size, output_size, bias=False)
        self.newfc2 = nn.Linear(output_size, output_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.newfc2(F.gelu(self.newfc1(x), approximate="tanh"))


class ForegroundPerception(nn.Module):
    """A product on white -> condition tokens -> one addition per injected decoder layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.decoder.hidden_size
        self.dropout = config.foreground.dropout
        self.patch_size = config.foreground.patch_size
        self.adapter = DINOv2(config.foreground)
        self.adapter_mlp = ControlMLP(config.foreground.hidden_size, width)
        self.condition_mlp = ControlMLP(width, width)
        self.condition_layers = nn.ModuleList(ControlMLP(width, width) for _ in range(config.num_additions))

    def forward(self, pixels: Tensor) -> Tensor:
        """Condition pictures (B, 3, S, S) in [-1, 1] -> additions (L, B, N, D), strength 1."""
        return self.additions(self.condition_tokens(pixels))

    def condition_tokens(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Condition tokens (B, N, D) in raster order. hidden (B,) is True for samples whose product is not shown;
        by default none in evaluation, a random share in training."""
        tokens = self.adapter_mlp(self.features(pixels))
        if hidden is None and self.training and self.dropout > 0:
            hidden = torch.rand(len(tokens), device=tokens.device) < self.dropout
        if hidden is not None:
            tokens = tokens.masked_fill(hidden[:, None, None], 0.0)
        return self.condition_mlp(tokens)

    def additions(self, tokens: Tensor) -> Tensor:
        """Condition tokens (B, N, D) -> additions (L, B, N, D)."""
        return torch.stack([layer(tokens) for layer in self.condition_layers])

    def features(self, pixels: Tensor) -> Tensor:
        """DINOv2's last hidden state after its final norm, without CLS: (B, N, hidden_size)."""
        return self.adapter(self.resized(pixels))[:, 1:]

    def resized(self, pixels: Tensor) -> Tensor:
        """Nearest-neighbour resize from 16-pixel to DINOv2's patches: one patch a condition token."""
        size = [side // _CONDITION_PATCH * self.patch_size for side in pixels.shape[-2:]]
        return F.interpolate(pixels, size=size, mode="nearest")
