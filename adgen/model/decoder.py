"""A Llama decoder with one addition: tensors that some layers add to their input (foreground control, docs/design.md 6.7).

Two ways through it. `forward` takes whole sequences, for training; `extend` appends to a cache, for generation. Linears
carry the names that Hugging Face's Llama uses, so that tensor parallelism from outside knows which to split; heads are
counted from a projection's width, so that a split layer works unchanged.

Shapes: B rows, T new positions, K cached positions, H heads, D hidden size, L additions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import DecoderConfig
from adgen.model.embedding_tables import Table


@dataclass
class KeyValueCache:
    """Keys and values of all layers, and how many positions of each row are real.

    Rows start at position 0 and have their own length: there is no padding in a cache. What lies beyond a row's length
    is never attended, and overwritten by the next `extend`.
    """

    keys: list[Tensor]  # per layer (B, H, K, D/H)
    values: list[Tensor]
    lengths: Tensor  # (B,) int64

    @property
    def capacity(self) -> int:
        """Positions that a row can hold."""
        return self.keys[0].shape[2]

    def truncate(self, lengths: Tensor) -> None:
        """Drop all tokens after the first `lengths` (B,) of each row; a row cannot grow this way."""
        self.lengths.clamp_(max=lengths.to(self.lengths))

    def copy_from(self, other: "KeyValueCache") -> None:
        """Take over the real positions of another cache with as many rows."""
        size = int(other.lengths.max())
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[:, :, :size] = theirs[:, :, :size]
        self.lengths.copy_(other.lengths)

    def rows(self, first: int, last: int) -> "KeyValueCache":
        """Rows first..last-1 as a view: what is appended to it is appended here."""
        at = slice(first, last)
        return KeyValueCache([k[at] for k in self.keys], [v[at] for v in self.values], self.lengths[at])


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rope_angles(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, head_size) in fp32 for positions (B, T); both halves hold the same angles (half-split RoPE)."""
    exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[:, None, :, None].float() * (theta**-exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, H, T, head_size) by its positions' angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Causal attention without biases; key/value heads may be fewer than query heads."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_size = config.head_size
        kv_size = config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values of x (B, T, D), each (B, H, T, head_size)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Attention output (B, T, D); visible (B, 1, T, K) is True where a query may look."""
        if q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[1] == k.shape[1]:
            out = _unfused_attention(q, k, v, visible)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(out.transpose(1, 2).flatten(2))


def _unfused_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """The same as torch's fused attention, whose backward in bf16 on a CPU takes twice the time of these products (and was a third
    of a training step), for memory that grows with the square of the length."""
    unseen = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, torch.finfo(q.dtype).min)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + unseen
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=q.dtype), v)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor,
        cached: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). `cached` is this layer's keys, values (B, H, >=K, .) and the positions (B, T) to write."""
        q, k, v = self.self_attn.project(self.input_layernorm(x), cos, sin)
        if cached is not None:
            k, v = _write(cached, k, v, num_visible=visible.shape[-1])
        x = x + self.self_attn.attend(q, k, v, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding table, layers, final norm and text head."""

    def __init__(self, config: DecoderConfig, addition_interval: int):
        super().__init__()
        self.config = config
        self.addition_interval = addition_interval
        self.embed_tokens = Table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False

    def forward(self, embeds: Tensor, attention_mask: Tensor | None = None, additions: Tensor | None = None) -> Tensor:
        """Whole sequences: embeds (B, T, D) -> final-normed hidden states (B, T, D).

        attention_mask (B, T) is nonzero on real positions; padding may be on either side, and its own outputs mean
        nothing. additions (L, B, N, D) are added to the last N positions, at the input of every interval-th layer.
        """
        rows, length, _ = embeds.shape
        positions = torch.arange(length, device=embeds.device).expand(rows, length)
        visible = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()[None, None]
        if attention_mask is not None:
            # A padded query would see nothing, and softmax over nothing is NaN: it may see itself.
            itself = torch.eye(length, dtype=torch.bool, device=embeds.device)
            visible = (visible & attention_mask.bool()[:, None, None]) | itself
        cos, sin = rope_angles(positions, self.config.head_size, self.config.rope_theta)
        x = embeds
        for index, layer in enumerate(self.layers):
            x = self._add(x, index, additions)
            if self.gradient_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, cos, sin, visible, use_reentrant=False)
            else:
                x = layer(x, cos, sin, visible)
        return self.norm(x)

    def new_cache(self, rows: int, capacity: int, device: torch.device | str, dtype: torch.dtype) -> KeyValueCache:
        """An empty cache of `rows` rows with room for `capacity` positions each."""
        heads = [layer.self_attn.k_proj.weight.shape[0] // self.config.head_size for layer in self.layers]

        def empty(h: int) -> Tensor:
            return torch.zeros(rows, h, capacity, self.config.head_size, device=device, dtype=dtype)

        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return KeyValueCache([empty(h) for h in heads], [empty(h) for h in heads], lengths)

    def extend(
        self, embeds: Tensor, cache: KeyValueCache, num_new: Tensor | None = None, additions: Tensor | None = None
    ) -> Tensor:
        """Append embeds (B, T, D) to the cache and return their final-normed hidden states (B, T, D).

        Row b has num_new[b] <= T real positions, on the left; outputs after them are undefined. additions as in `forward`.
        Raises ValueError when a row would not fit.
        """
        rows, length, _ = embeds.shape
        if num_new is None:
            num_new = torch.full((rows,), length, dtype=torch.int64, device=embeds.device)
        positions = cache.lengths[:, None] + torch.arange(length, device=embeds.device)
        num_visible = int(cache.lengths.max()) + length
        if num_visible > cache.capacity:
            raise ValueError(f"{num_visible} positions do not fit a cache of {cache.capacity}")
        keys_at = torch.arange(num_visible, device=embeds.device)
        visible = (keys_at <= positions[:, :, None])[:, None]
        cos, sin = rope_angles(positions, self.config.head_size, self.config.rope_theta)
        x = embeds
        for index, layer in enumerate(self.layers):
            x = layer(self._add(x, index, additions), cos, sin, visible, (cache.keys[index], cache.values[index], positions))
        cache.lengths += num_new.to(cache.lengths)  # in place: views of some rows share it
        return self.norm(x)

    def _add(self, x: Tensor, layer: int, additions: Tensor | None) -> Tensor:
        if additions is None or layer % self.addition_interval:
            return x
        addition = additions[layer // self.addition_interval].to(x.dtype)
        front = x.shape[1] - addition.shape[1]
        return x + (F.pad(addition, (0, 0, front, 0)) if front else addition)


def _write(cached: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Put new keys and values (B, H, T, .) at their positions; return the first `num_visible` of the layer's."""
    keys, values, positions = cached
    at = positions[:, None, :, None].expand_as(k)
    keys.scatter_(2, at, k.to(keys.dtype))
    values.scatter_(2, at, v.to(values.dtype))
    return keys[:, :, :num_visible].to(k.dtype), values[:, :, :num_visible].to(v.dtype)


def split_heads(qkv: Tensor, cos: Tensor, sin: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (R, W) -> rotated queries (R, H, E), rotated keys and plain values (R, G, E)."""
    heads = qkv.unflatten(-1, (-1, cos.shape[-1]))
    q, k, v = heads.split((heads.shape[1] - 2 * num_groups, num_groups, num_groups), dim=1)
    return rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None]), v
