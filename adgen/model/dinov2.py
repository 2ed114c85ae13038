"""The DINOv2 that sees products, with the published position resampling (docs/design.md 6.6; Oquab et al. 2023).

Names and shapes of the weights are those of transformers' Dinov2Model; the tests compare both, bit by bit. It is not used here:
loading transformers takes a process seconds before any work.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import ForegroundConfig
from adgen.model.positions import resample_positions

_EPS = 1e-6


class DINOv2(nn.Module):
    """Pixels (B, 3, H, W) -> the normed last hidden state (B, 1 + patches, hidden_size), CLS first."""

    def __init__(self, config: ForegroundConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


class Embeddings(nn.Module):
    """CLS and patches with their positions."""

    def __init__(self, config: ForegroundConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, config.hidden_size))  # of its own training alone; published weights have it
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.position_grid**2 + 1, config.hidden_size))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        projection = self.patch_embeddings.projection
        patches = projection(pixels.to(projection.weight.dtype)).flatten(2).transpose(1, 2)
        grid = pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return x + resample_positions(self.position_embeddings, grid)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each with a scaled residual."""

    def __init__(self, config: ForegroundConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=_EPS)
        self.attention = SelfAttention(config.hidden_size, config.num_heads)
        self.layer_scale1 = LayerScale(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=_EPS)
        self.mlp = FeedForward(config.hidden_size, config.hidden_size * config.mlp_ratio)
        self.layer_scale2 = LayerScale(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_scale1(self.attention(self.norm1(x))) + x
        return self.layer_scale2(self.mlp(self.norm2(x))) + x


class SelfAttention(nn.Module):
    """Every patch looks at every other."""

    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A factor for each feature."""

    def __init__(self, size: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, size: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
