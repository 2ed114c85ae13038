"""Pictures as tokens: the VQ tokenizer, and the embedding and head of its tokens. docs/design.md 6.1 and 6.10."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import ImageTokenConfig
from adgen.model.embedding_tables import Table
from adgen.model.vqvae import VQVAE


class ImageTokenizer(nn.Module):
    """Pixels to codes and back: the nearest code is that of the smallest angle, as published."""

    def __init__(self, config: ImageTokenConfig):
        super().__init__()
        self.vqvae = VQVAE(config)

    def latents(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> unquantised latents (B, C, h, w)."""
        dtype = self.vqvae.quant_conv.weight.dtype
        return self.vqvae.quant_conv(self.vqvae.encoder(pixels.to(dtype)))

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> codes (B, h*w) int64, raster order: the nearest in cosine."""
        unit = F.normalize(latents.flatten(2).transpose(1, 2).float(), dim=-1)
        return (unit @ self.codebook().float().T).argmax(-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> codes (B, h*w) int64, raster order."""
        return self.quantize(self.latents(pixels))

    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (B, h*w) -> pixels (B, 3, H, W), not clamped. `grid` is (h, w), by default square."""
        side = round(codes.shape[1] ** 0.5)
        entry = self.codebook()[codes].unflatten(1, grid or (side, side)).permute(0, 3, 1, 2)
        return self.vqvae.decoder(self.vqvae.post_quant_conv(entry))

    def codebook(self) -> Tensor:
        """The code vectors (V, C), normalised: what both encoding and decoding use."""
        return F.normalize(self.vqvae.quantize.embedding.weight, dim=-1)


class ImageTokenEmbedding(nn.Module):
    """An image token as the decoder reads it: its own small table, then the aligner. Not the VQ codebook."""

    def __init__(self, config: ImageTokenConfig, width: int):
        super().__init__()
        self.gen_embed = Table(config.codebook_size, config.code_size)
        self.gen_aligner = nn.Sequential(nn.Linear(config.code_size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (...,) -> embeddings (..., D)."""
        return self.gen_aligner(self.gen_embed(codes))

    def table(self) -> Tensor:
        """The embedding of every code (V, D)."""
        return self.gen_aligner(self.gen_embed.weight)


class ImageTokenHead(nn.Module):
    """Hidden states to logits over the codes."""

    def __init__(self, config: ImageTokenConfig, width: int):
        super().__init__()
        self.output_mlp_projector = nn.Linear(width, config.head_size)
        self.vision_head = nn.Linear(config.head_size, config.codebook_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.vision_head(F.gelu(self.output_mlp_projector(hidden)))


def to_unit_range(pictures: Tensor) -> Tensor:
    """uint8 pictures (..., H, W, 3) -> float pixels (..., 3, H, W) in [-1, 1]: (v/255 - 0.5)/0.5."""
    return (pictures.movedim(-1, -3).float() / 255.0 - 0.5) / 0.5


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W), clamped to [-1, 1] -> uint8 pictures (B, H, W, 3)."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).movedim(-3, -1).contiguous()
