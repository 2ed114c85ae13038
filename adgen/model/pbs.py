"""PBS, the personalized background similarity: the encoder of backgrounds, and the cosine of two pictures. docs/design.md 6.11."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.config import read_json, validate_settings
from adgen.errors import ModelError, SettingsError
from adgen.model.pbs_config import PBSConfig
from adgen.model.positions import resample_positions
from adgen.model.weight_files import read_tensors

PBS_FILE, PBS_CONFIG_FILE = "pbs.safetensors", "pbs.json"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CHECKPOINT_PREFIX = "module.base_encoder."


class _Attention(nn.Module):
    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, size: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(size, ratio * size)
        self.fc2 = nn.Linear(ratio * size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: PBSConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = _Attention(config.hidden_size, config.num_heads)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = _FeedForward(config.hidden_size, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    def __init__(self, config: PBSConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels)


class PBSEncoder(nn.Module):
    """A vision transformer whose class token is compressed to the feature. Module names are the published keys."""

    def __init__(self, config: PBSConfig | None = None):
        super().__init__()
        self.config = config = config or PBSConfig()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.patch_embed = _Patches(config)
        self.blocks = nn.Sequential(*(_Block(config) for _ in range(config.num_layers)))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.compress_layer = nn.Sequential(
            nn.Linear(config.hidden_size, config.feature_size, bias=False),
            nn.BatchNorm1d(config.feature_size, affine=False),
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> class and patch tokens with positions (B, 1 + P, D)."""
        patches = self.patch_embed(pixels)
        positions = resample_positions(self.pos_embed, tuple(patches.shape[-2:]))
        tokens = torch.cat((self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        return tokens + positions

    def class_token(self, pixels: Tensor) -> Tensor:
        """The final-normed class token (B, D)."""
        return self.norm(self.blocks(self.embed(pixels)))[:, 0]

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> features (B, feature_size), not normalised."""
        return self.compress_layer(self.class_token(pixels))


@torch.no_grad()
def initialize_pbs(encoder: PBSEncoder, seed: int = 0) -> PBSEncoder:
    """Fill a new encoder's parameters; the same seed gives the same weights on every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            std = 0.02 if name in ("cls_token", "pos_embed") else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return encoder


def read_pbs_config(directory: Path) -> PBSConfig:
    """The sizes in an encoder directory; ModelError names the file and the field."""
    path = directory / PBS_CONFIG_FILE
    try:
        return validate_settings(PBSConfig, read_json(path), str(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file: {directory} is not an encoder of stage pbs") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    except SettingsError as error:
        raise ModelError(str(error)) from None


def load_pbs(path: str | Path, config: PBSConfig | None = None) -> PBSEncoder:
    """The encoder from a directory that stage `pbs` wrote, from a published checkpoint (`ckpt["model"]`, keys under
    `module.base_encoder.`) or from a file of its own keys. Other keys of a published checkpoint are ignored; ModelError
    names a missing key or another shape."""
    if Path(path).is_dir():
        config, path = config or read_pbs_config(Path(path)), Path(path) / PBS_FILE
    tensors = dict(read_tensors(Path(path), inside="model"))
    published = {k.removeprefix(_CHECKPOINT_PREFIX): v for k, v in tensors.items() if k.startswith(_CHECKPOINT_PREFIX)}
    tensors = published or tensors
    with torch.device("meta"):
        model = PBSEncoder(config)
    wanted = model.state_dict()
    for name, slot in wanted.items():
        if name not in tensors and not name.endswith("num_batches_tracked"):
            raise ModelError(f"{path}: key {name} is missing")
        if name in tensors and tensors[name].shape != slot.shape:
            raise ModelError(f"{path}: {name} has shape {list(tensors[name].shape)}, the encoder needs {list(slot.shape)}")
    zero = torch.zeros((), dtype=torch.int64)
    model.load_state_dict({name: tensors.get(name, zero) for name in wanted}, assign=True)
    return model.float().eval()


def preprocess(picture: Image.Image, config: PBSConfig | None = None) -> Tensor:
    """RGB -> (3, S, S): shorter side to resize_to (bilinear, antialiased), centre crop, ImageNet mean and deviation."""
    config = config or PBSConfig()
    width, height = picture.size
    short = min(width, height)
    size = (int(config.resize_to * width / short), int(config.resize_to * height / short))
    picture = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - config.image_size) / 2.0) for side in size)
    picture = picture.crop((left, top, left + config.image_size, top + config.image_size))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255.0
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def pbs(features: Tensor, others: Tensor) -> Tensor:
    """Cosine of each pair of features (B, F) and (B, F): (B,) in [-1, 1]. The score of a set is its mean."""
    return F.cosine_similarity(features, others, dim=-1)
