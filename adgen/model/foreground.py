"""Foreground perception: what the product looks like, as additions to some of the decoder's layers. Spec section 3.

Everything here depends on the product alone, so it is computed once a product and handed on as one tensor.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from adgen.model.config import ModelConfig

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
        self.adapter = Dinov2Model(dinov2_config(config))
        self.adapter.embeddings = ResampledEmbeddings(self.adapter.config)
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
        return self.adapter(self.resized(pixels)).last_hidden_state[:, 1:]

    def resized(self, pixels: Tensor) -> Tensor:
        """Nearest-neighbour resize from 16-pixel to DINOv2's patches: one patch a condition token."""
        size = [side // _CONDITION_PATCH * self.patch_size for side in pixels.shape[-2:]]
        return F.interpolate(pixels, size=size, mode="nearest")


class ResampledEmbeddings(Dinov2Embeddings):
    """DINOv2's patch embeddings with the published position resampling; see `resample_positions`."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position rows for a picture of height x width pixels."""
        return resample_positions(self.position_embeddings, (height // self.patch_size, width // self.patch_size))


def resample_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1, 1 + n*n, D), class row first, at another grid: (1, 1 + h*w, D).

    Bicubic with scale factors (h + 0.1)/n and (w + 0.1)/n, so that sampling coordinates use 24.1/37 and not 24/37: the
    published weights were trained with it. transformers (5.17 and 5.23) passes `size=` instead, which moves DINOv2's
    output by O(0.1). A table of the same grid is returned as it is.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", align_corners=False)
    if patches.shape[-2:] != torch.Size(grid):
        raise ValueError(f"position table of {side}x{side} resampled to {tuple(patches.shape[-2:])}, wanted {grid}")
    return torch.cat((table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)


def dinov2_config(config: ModelConfig) -> Dinov2Config:
    """transformers' configuration of the DINOv2 in `config`."""
    sizes = config.foreground
    return Dinov2Config(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        patch_size=sizes.patch_size,
        image_size=sizes.position_grid * sizes.patch_size,
        mlp_ratio=sizes.mlp_ratio,
        layer_norm_eps=1e-6,
    )
