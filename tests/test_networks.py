"""The product's DINOv2 and the image tokenizer's networks against transformers', bit by bit; and what loading a model costs."""

import subprocess
import sys

import pytest
import torch
import transformers
from support.models import small_config

from adgen.model.config import tiny
from adgen.model.dinov2 import DINOv2
from adgen.model.positions import resample_positions
from adgen.model.vqvae import VQVAE


def filled(module, seed: int = 0):
    """Random weights, norms and scales too, the same for the same names."""
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(module.state_dict().items()):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (tensor[0].numel() if tensor.dim() > 1 else 4) ** -0.5)
    return module.eval()


def of_32_groups(config):
    """transformers' group norms have no other number."""
    return config.model_copy(update={"base_channels": 32, "norm_groups": 32})


@pytest.mark.parametrize("config", [of_32_groups(small_config().image), of_32_groups(tiny().image)], ids=["small", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_tokenizers_networks_are_transformers(config, dtype):
    theirs = transformers.JanusVQVAE(
        transformers.JanusVQVAEConfig(
            embed_dim=config.code_size, num_embeddings=config.codebook_size, latent_channels=config.latent_channels,
            base_channels=config.base_channels, channel_multiplier=list(config.channel_multiplier),
            num_res_blocks=config.num_res_blocks, num_patches=config.image_size // config.factor,
        )
    )  # fmt: skip
    ours = VQVAE(config)
    assert list(ours.state_dict()) == list(theirs.state_dict()), "new weights are drawn in this order"
    theirs = filled(theirs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(dtype).eval()
    pixels = torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    latents = ours.encoder(pixels)
    assert torch.equal(latents, theirs.encoder(pixels.clone()))
    assert torch.equal(ours.decoder(latents), theirs.decoder(latents.clone()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [112, 70])
@torch.no_grad()
def test_the_dinov2_is_transformers_but_for_its_positions(monkeypatch, dtype, side):
    config = tiny().foreground
    theirs = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=config.hidden_size, num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            patch_size=config.patch_size, image_size=config.position_grid * config.patch_size, mlp_ratio=config.mlp_ratio,
        )
    )  # fmt: skip
    ours = DINOv2(config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs = filled(theirs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(dtype).eval()
    embeddings = theirs.embeddings
    resampled = lambda _, height, width: resample_positions(embeddings.position_embeddings, (height // 14, width // 14))  # noqa: E731
    monkeypatch.setattr(embeddings, "interpolate_pos_encoding", resampled)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(pixels), theirs(pixels).last_hidden_state)


@pytest.mark.slow
def test_loading_a_model_loads_neither_transformers_nor_torchs_compiler():
    """They take three to ten CPU seconds of every process that has a model."""
    code = (
        "import sys, torch\n"
        "from adgen.on_ray.refresh.generate import Generate\n"
        "from adgen.generation.model_directory import ModelDirectory\n"
        "from adgen.model.pbs import load_pbs\n"
        "from adgen.shipped import shipped_encoder, shipped_model\n"
        "ModelDirectory(shipped_model()).load(dtype=torch.float32), load_pbs(shipped_encoder())\n"
        "print(sorted({'transformers', 'torch._dynamo', 'torchao', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
