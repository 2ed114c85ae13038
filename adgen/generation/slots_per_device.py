"""How many creatives a device makes at once (slots): its memory less the weights and the largest phase, by the bytes of a slot.

Pure arithmetic from a model's sizes, so a driver without a GPU plans what an engine will find.
"""

import torch

from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.checkpoint import on_meta
from adgen.model.config import ModelConfig

MAX_SLOTS = 256
MAX_PREFILL_TOKENS = 1024
"""Tokens of a prompt that go through the layers at once: enough to fill a GPU, and memory stays small."""
MAX_VQ_PICTURES = 8
"""Pictures that are decoded to pixels at once."""
_SPARE_SHARE = 0.1
"""Of the memory; for the allocator's rounding, captured graphs and what libraries keep."""


def plan_num_slots(
    config: ModelConfig, capacity: int, memory_bytes: int, dtype: torch.dtype, cache_dtype: torch.dtype, ranks: int = 1
) -> int:
    """Slots for a device of memory_bytes; at least 1, whose failure the engine then reports.

    capacity: tokens that a conditional row may hold (prompt, title and picture). ranks share the layers and their caches.
    """
    passing = bytes_of_largest_phase(config, dtype)
    left = memory_bytes * (1 - _SPARE_SHARE) - weight_bytes(config, dtype, ranks) - passing
    return int(min(max(left // bytes_per_slot(config, capacity, dtype, cache_dtype, ranks), 1), MAX_SLOTS))


def weight_bytes(config: ModelConfig, dtype: torch.dtype, ranks: int = 1) -> int:
    """Weights on one of `ranks` ranks, the table of embedded image tokens included."""
    model = on_meta(config)
    layers = sum(p.numel() for p in model.decoder.layers.parameters())
    rest = sum(p.numel() for p in model.parameters()) - layers
    table = config.image.codebook_size * config.decoder.hidden_size
    return (layers // ranks + rest + table) * dtype.itemsize


def bytes_per_cached_token(config: ModelConfig, cache_dtype: torch.dtype, ranks: int = 1) -> int:
    """Keys and values of one token in all layers, on one of `ranks` ranks."""
    sizes = config.decoder
    return 2 * sizes.num_layers * (sizes.num_key_value_heads // ranks) * sizes.head_size * cache_dtype.itemsize


def bytes_per_slot(config: ModelConfig, capacity: int, dtype: torch.dtype, cache_dtype: torch.dtype, ranks: int = 1) -> int:
    """What one more creative needs: `capacity` cached tokens in its conditional row, a picture's in the other, its product's
    additions, and two rows of logits in fp32."""
    tokens, width = config.image.tokens_per_picture, config.decoder.hidden_size
    cached = (capacity + tokens) * bytes_per_cached_token(config, cache_dtype, ranks)
    additions = config.num_additions * tokens * width * dtype.itemsize
    logits = 2 * max(config.image.codebook_size, config.decoder.vocab_size) * 4
    return cached + additions + logits


def bytes_of_largest_phase(config: ModelConfig, dtype: torch.dtype) -> int:
    """Passing memory: a prefill chunk's widest activations, or the image tokenizer's last level (pictures in its base
    channels, three times: input, output and residual)."""
    prefill = MAX_PREFILL_TOKENS * (3 * config.decoder.intermediate_size + 4 * config.decoder.hidden_size) * dtype.itemsize
    pixels = MAX_VQ_PICTURES * 3 * config.image.image_size**2 * config.image.base_channels * dtype.itemsize
    return max(prefill, pixels)


def row_capacity(config: ModelConfig, prompter: Prompter, sampling: SamplingSettings) -> int:
    """Tokens that a conditional row may come to hold: the longest prompt, its title and its picture."""
    needed = prompter.max_prompt_tokens(config.history_items) + sampling.max_title_tokens + config.image.tokens_per_picture
    return min(needed, config.decoder.max_positions)
