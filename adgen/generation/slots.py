"""Device memory of the creatives of a batch: allocated once, and reused by every batch. How many there are: slots_per_device.py.

Shapes: B slots, N image tokens of a picture, L additions, D hidden size.
"""

import torch
from torch import Tensor

from adgen.generation.caches import CfgBranch, empty_cache
from adgen.generation.layers import StepLayers
from adgen.model.config import ModelConfig


class Slots:
    """Caches of both branches, foreground additions, seeds and codes of B creatives. The tensors keep their addresses, so a
    captured step stays valid; only `make_room` moves the conditional cache."""

    def __init__(
        self,
        config: ModelConfig,
        layers: StepLayers,
        num_slots: int,
        capacity: int,
        dtype: torch.dtype,
        cache: torch.dtype,
    ):
        """capacity: tokens of the longest prompt, its title and picture. dtype: of activations; cache: of keys and values."""
        device = layers.rope.cos.device
        self.num_slots, self.num_tokens = num_slots, config.image.tokens_per_picture
        self._layers, self._cache_dtype = layers, cache
        negative = empty_cache(len(layers.layers), 1, layers.num_groups, 0, layers.head_size, device, cache)
        counts = lambda: torch.zeros(num_slots, dtype=torch.int64, device=device)  # noqa: E731
        self._active = torch.ones(num_slots, dtype=torch.bool, device=device)
        self.conditional = CfgBranch(self._cache(num_slots, capacity), counts(), self._active)
        self.unconditional = CfgBranch(self._cache(num_slots, self.num_tokens), counts(), torch.ones_like(self._active), negative)
        shape = (config.num_additions, num_slots, self.num_tokens, config.decoder.hidden_size)
        self.additions = torch.zeros(shape, device=device, dtype=dtype)
        """Of up to B products; `product` says which a slot shows."""
        self.product = counts()
        self.seeds, self.steps, self.code = counts(), counts(), counts()
        """(B,) noise keys; image tokens that are drawn; the last of them."""
        self.hidden = torch.zeros(num_slots, config.decoder.hidden_size, device=device, dtype=dtype)
        """(B, D) of the newest title token; `code` holds the token itself while titles are written."""
        self.codes = torch.zeros(num_slots, self.num_tokens, dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        """Tokens that a conditional row can hold."""
        return self.conditional.cache.capacity

    def start(self, seeds: list[int]) -> None:
        """Begin a batch: empty rows, all of them at work."""
        self.conditional.clear()
        self.conditional.active.fill_(True)
        self.seeds.copy_(torch.tensor(seeds))

    def start_pictures(self) -> None:
        """Conditional rows hold their prompts; unconditional ones nothing but the shared prefix."""
        for branch in (self.conditional, self.unconditional):
            branch.active.fill_(True)
        self.unconditional.clear()
        self.steps.zero_()

    def state(self) -> list[Tensor]:
        """What a step changes, cache contents left out."""
        branches = (self.conditional, self.unconditional)
        return [self.steps, self.code, self.codes, self.hidden, *(branch.cache.lengths for branch in branches)]

    def make_room(self, capacity: int) -> bool:
        """Conditional rows can hold at least `capacity` tokens; True when the cache had to move for it."""
        if capacity <= self.capacity:
            return False
        grown = self._cache(self.num_slots, capacity)
        grown.copy_from(self.conditional.cache)
        self.conditional.cache = grown
        return True

    def share_negative_prompt(self, embeds: Tensor) -> Tensor:
        """Store the negative prompt (P, D) once, before all unconditional rows; the hidden state (D,) at its end."""
        device = embeds.device
        prefix = empty_cache(
            len(self._layers.layers), 1, self._layers.num_groups, len(embeds), self._layers.head_size, device, self._cache_dtype
        )
        self.unconditional.prefix = prefix
        self.unconditional.offsets.fill_(len(embeds))
        alone = CfgBranch(prefix, torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.bool, device=device))
        return self._layers.prefill(embeds, alone.row(0))

    def _cache(self, rows: int, capacity: int):
        layers = self._layers
        return empty_cache(len(layers.layers), rows, layers.num_groups, capacity, layers.head_size, self._device, self._cache_dtype)

    @property
    def _device(self) -> torch.device:
        return self._layers.rope.cos.device
