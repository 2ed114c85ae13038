"""Models to measure: named sizes with random weights, which cost as much time as trained ones and none to make."""

import torch

from adgen.errors import SettingsError
from adgen.model.checkpoint import on_meta
from adgen.model.config import PRESETS, DecoderConfig, ForegroundConfig, ImageTokenConfig, ModelConfig, PreferenceConfig
from adgen.model.uniadgen import UniAdGen

_BLOCK = 1_000_003  # a prime: no two rows of a matrix begin at the same place of the block


def bench_30m() -> ModelConfig:
    """A decoder of 30 million weights that paints as many tokens as the 7B model, its product through a whole
    DINOv2-small at 336 px. Large enough that two cores feel its weights and caches, small enough to wait for."""
    return ModelConfig(
        name="bench-30m",
        decoder=DecoderConfig(
            hidden_size=512,
            intermediate_size=1365,
            num_layers=8,
            num_heads=8,
            num_key_value_heads=8,
            vocab_size=4096,
            max_positions=4096,
        ),
        image=ImageTokenConfig(codebook_size=4096, base_channels=32, head_size=512, image_size=384, history_size=128),
        preference=PreferenceConfig(num_heads=8),
        foreground=ForegroundConfig(),
    )


SIZES = {"bench-30m": bench_30m, **PRESETS}


def size(name: str, num_layers: int | None = None) -> ModelConfig:
    """A size by its name; num_layers: decoder layers instead of the size's own, to try a big model on a small machine."""
    if name not in SIZES:
        raise SettingsError(f"size {name!r} is unknown; known are {', '.join(SIZES)}")
    config = SIZES[name]()
    if num_layers is None:
        return config
    return config.model_copy(update={"decoder": config.decoder.model_copy(update={"num_layers": num_layers})})


@torch.no_grad()
def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> UniAdGen:
    """A model whose weights are one block of noise, over and over, scaled to keep activations finite. Seconds for 7B: it is
    built without memory and each weight is written once."""
    model = on_meta(config).to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_BLOCK, generator=generator).to(device, dtype)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            _tile(parameter.view(-1), noise * parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for buffer in model.buffers():
        buffer.zero_()
    return model


def sharing_copy(model: UniAdGen) -> UniAdGen:
    """Another model over the same tensors: an engine may take its modules apart, and the weights are still there."""
    copy = on_meta(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    return copy.eval().requires_grad_(False)


def _tile(flat: torch.Tensor, block: torch.Tensor) -> None:
    for start in range(0, len(flat), len(block)):
        piece = flat[start : start + len(block)]
        piece.copy_(block[: len(piece)])
