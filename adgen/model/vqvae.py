"""The two convolutional networks of the VQ image tokenizer (docs/design.md 6.10): pixels to latents, latents to pixels.

Names and shapes of the weights are those of transformers' JanusVQVAE; the tests compare both, bit by bit. It is not used here:
loading transformers takes a process seconds before any work, and its group norms have 32 groups whatever their width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import ImageTokenConfig
from adgen.model.embedding_tables import Table

_EPS = 1e-6


class VQVAE(nn.Module):
    """Encoder, codebook, decoder, and the 1x1 convolutions between them. What is nearest is `ImageTokenizer`'s to say."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_size, 1)
        self.post_quant_conv = nn.Conv2d(config.code_size, config.latent_channels, 1)
        self.decoder = Decoder(config)


class Codebook(nn.Module):
    """The code vectors (V, C)."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        self.embedding = Table(config.codebook_size, config.code_size)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> (B, latent_channels, H / factor, W / factor)."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        self.conv_in = _conv(3, config.base_channels)
        self.down = nn.ModuleList()
        before = config.base_channels
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            step = _level(before, width, config.num_res_blocks, last, config.norm_groups)
            if not last:
                step.downsample = Downsample(width)
            self.down.append(step)
            before = width
        self.mid = Middle(before, config.norm_groups)
        self.norm_out = _norm(before, config.norm_groups)
        self.conv_out = _conv(before, config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for step in self.down:
            x = _through(step, x)
            x = step.downsample(x) if hasattr(step, "downsample") else x
        return self.conv_out(_swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> pixels (B, 3, h * factor, w * factor)."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        before = widths[-1]
        self.conv_in = _conv(config.latent_channels, before)
        self.mid = Middle(before, config.norm_groups)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            step = _level(before, widths[level], config.num_res_blocks + 1, level == len(widths) - 1, config.norm_groups)
            if level:
                step.upsample = Upsample(widths[level])
            self.up.append(step)
            before = widths[level]
        self.norm_out = _norm(before, config.norm_groups)
        self.conv_out = _conv(before, 3)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for step in self.up:
            x = _through(step, x)
            x = step.upsample(x) if hasattr(step, "upsample") else x
        return self.conv_out(_swish(self.norm_out(x)))


class Residual(nn.Module):
    """Two normed 3x3 convolutions beside the identity, or beside a 1x1 convolution where the width changes."""

    def __init__(self, before: int, width: int, groups: int):
        super().__init__()
        self.norm1 = _norm(before, groups)
        self.conv1 = _conv(before, width)
        self.norm2 = _norm(width, groups)
        self.conv2 = _conv(width, width)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv2(_swish(self.norm2(self.conv1(_swish(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + inside


class Attention(nn.Module):
    """One head of attention over all places, beside the identity."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2) for part in (self.q, self.k, self.v))  # (B, C, places)
        weights = F.softmax(torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).view_as(x))


class Middle(nn.Module):
    """What the smallest grid passes."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.block_1 = Residual(width, width, groups)
        self.attn_1 = Attention(width, groups)
        self.block_2 = Residual(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Half the side: a strided convolution, padded on the right and below alone."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: each place four times, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(before: int, width: int, blocks: int, attends: bool, groups: int) -> nn.Module:
    """The blocks of one resolution; the smallest has attention after each."""
    step = nn.Module()
    step.block = nn.ModuleList(Residual(before if first == 0 else width, width, groups) for first in range(blocks))
    step.attn = nn.ModuleList(Attention(width, groups) for _ in range(blocks if attends else 0))
    return step


def _through(step: nn.Module, x: Tensor) -> Tensor:
    for index, block in enumerate(step.block):
        x = block(x)
        x = step.attn[index](x) if len(step.attn) else x
    return x


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=_EPS)


def _conv(before: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, padding=1)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
