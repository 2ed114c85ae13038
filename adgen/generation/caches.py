"""Keys and values that the decoder has computed: a cache of fixed size, the two branches of classifier-free guidance, one row.

Shapes: B slots, G key/value heads, K capacity, E head size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from adgen.model.decoder import KeyValueCache


@dataclass
class CfgBranch:
    """The conditional or the unconditional rows of a batch (classifier-free guidance). Conditional rows hold their own prompts;
    unconditional rows share one stored prompt and hold only their image tokens. A row starts at index 0 and has its own length."""

    cache: KeyValueCache
    offsets: Tensor
    """(B,) int64: RoPE position of a row's index 0."""
    active: Tensor
    """(B,) bool: rows that generate. The others wait: they cost no attention and do not grow."""
    prefix: KeyValueCache | None = None
    """One row that stands before all of them; full: its capacity is its length."""

    plain: bool = False
    """Attend without a kernel (adgen/generation/device_check.py)."""
    plans: dict = field(default_factory=dict, repr=False, compare=False)
    """By layer: arguments that `attention` caches between steps."""

    @property
    def num_shared(self) -> int:
        """Tokens of the prefix."""
        return self.prefix.capacity if self.prefix else 0

    def positions(self) -> Tensor:
        """(B,) RoPE position of each row's next token."""
        return self.cache.lengths + self.offsets

    def advance(self) -> None:
        """Every active row holds one token more."""
        self.cache.lengths += self.active

    def row(self, index: int) -> "RowCache":
        """One row, to fill with a prompt."""
        return RowCache(self.cache, index, int(self.cache.lengths[index]))

    def clear(self) -> None:
        """Forget every row's tokens."""
        self.cache.lengths.zero_()


@dataclass
class RowCache:
    """One row of a cache."""

    cache: KeyValueCache
    index: int
    length: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write keys and values (G, T, E) after the row's tokens; `grow` then counts them."""
        end = self.length + keys.shape[1]
        self.cache.keys[layer][self.index, :, self.length : end] = keys.to(self.cache.keys[layer].dtype)
        self.cache.values[layer][self.index, :, self.length : end] = values.to(self.cache.values[layer].dtype)

    def read(self, layer: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of a layer, (G, length, E) each."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return keys[self.index, :, :length].to(dtype), values[self.index, :, :length].to(dtype)

    def grow(self, num_tokens: int) -> None:
        """Count `num_tokens` appended tokens."""
        self.length += num_tokens
        self.cache.lengths[self.index] = self.length

    def copy_from(self, other: "RowCache") -> None:
        """Hold what another row of the same cache holds."""
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor[self.index, :, : other.length] = tensor[other.index, :, : other.length]
        self.cut(other.length)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.length = length
        self.cache.lengths[self.index] = length


def empty_cache(
    num_layers: int, rows: int, groups: int, capacity: int, head_size: int, device: torch.device, dtype: torch.dtype
) -> KeyValueCache:
    """A cache without tokens; every value in it is finite, also where nothing was written."""
    make = lambda: torch.zeros(rows, groups, capacity, head_size, device=device, dtype=dtype)  # noqa: E731
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    return KeyValueCache([make() for _ in range(num_layers)], [make() for _ in range(num_layers)], lengths)
