"""How many creatives fit a device at once: weights, then caches and additions a slot, then room for the largest phase.

Shapes as elsewhere: N image tokens, D hidden size, G key/value heads, E head size.
"""

import torch

from adgen.model.config import ModelConfig

CPU_SLOTS = 4
"""On a CPU eight rows already keep the matrix units busy (two Zen 5 cores): more slots only add memory."""
MAX_SLOTS = 256
_SPARE_SHARE = 0.08
"""Of the memory; for the allocator's rounding and what libraries keep."""


def bytes_per_cached_token(config: ModelConfig, cache_dtype: torch.dtype, ranks: int = 1) -> int:
    """Keys and values of one token in all layers, on one of `ranks` ranks."""
    sizes = config.decoder
    return 2 * sizes.num_layers * (sizes.num_key_value_heads // ranks) * sizes.head_size * cache_dtype.itemsize


def bytes_per_slot(config: ModelConfig, capacity: int, dtype: torch.dtype, cache_dtype: torch.dtype, ranks: int = 1) -> int:
    """What one more creative needs: `capacity` cached tokens in its conditional row, N in the other, its product's
    additions, and two rows of logits in fp32."""
    tokens, width = config.image.tokens_per_picture, config.decoder.hidden_size
    cached = (capacity + tokens) * bytes_per_cached_token(config, cache_dtype, ranks)
    additions = config.num_additions * tokens * width * dtype.itemsize
    logits = 2 * max(config.image.codebook_size, config.decoder.vocab_size) * 4
    return cached + additions + logits


def bytes_of_largest_phase(config: ModelConfig, dtype: torch.dtype, prefill_tokens: int, vq_pictures: int) -> int:
    """Passing memory: a prefill chunk's widest activations, or the image tokenizer's last level (a picture in its base
    channels, three times: input, output and residual)."""
    prefill = prefill_tokens * (3 * config.decoder.intermediate_size + 4 * config.decoder.hidden_size) * dtype.itemsize
    pixels = vq_pictures * 3 * config.image.image_size**2 * config.image.base_channels * dtype.itemsize
    return max(prefill, pixels)


def plan_num_slots(memory_bytes: int, weight_bytes: int, phase_bytes: int, slot_bytes: int) -> int:
    """Slots that fit `memory_bytes` of a device; at least 1, whose failure the engine then reports."""
    left = memory_bytes * (1 - _SPARE_SHARE) - weight_bytes - phase_bytes
    return int(min(max(left // slot_bytes, 1), MAX_SLOTS))
