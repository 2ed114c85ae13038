"""Fine preference understanding: which parts of a history matter (masks), and together (fusion). docs/design.md 6.2 to 6.4.

Shapes: B samples, N history items, T tokens an item, D width. Items come first, tokens within them second, everywhere.

In a batch some samples may have fewer items than N: theirs come first. `real` (B, N*T) marks them; padding is
never attended, kept or counted. A sample's result is then the one that it has alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import PreferenceConfig
from adgen.model.embedding_tables import Table
from adgen.model.names import current_name
from adgen.model.style_embedding import style_embedding


class SelfAttention(nn.Module):
    """Plain bidirectional self attention with biases."""

    def __init__(self, size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); visible (B, 1, S, S) is True where a query may look."""
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(out.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Post-norm transformer block (docs/design.md 6.2)."""

    def __init__(self, size: int, config: PreferenceConfig):
        super().__init__()
        inner = size * config.feed_forward_factor
        self.attn = SelfAttention(size, config.num_heads, config.dropout)
        self.ff = nn.Sequential(nn.Linear(size, inner), QuickGELU(), nn.Linear(inner, size))
        self.norm1 = nn.LayerNorm(size)
        self.norm2 = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x, visible)))
        return self.norm2(x + self.dropout(self.ff(x)))


class BaseTransformer(nn.Module):
    """Token positions within an item, then blocks over all tokens of all items."""

    def __init__(self, size: int, num_tokens: int, num_layers: int, config: PreferenceConfig):
        super().__init__()
        self.pos_encoding = nn.Parameter(torch.zeros(1, num_tokens, size))
        self.transformer_layers = nn.ModuleList(Block(size, config) for _ in range(num_layers))

    def forward(self, items: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, N, T, D) -> (B, N, T, D)."""
        x = (items + _positions(self.pos_encoding, items.shape[2])).flatten(1, 2)
        visible = _visible(real)
        for layer in self.transformer_layers:
            x = layer(x, visible)
        return x.unflatten(1, items.shape[1:3])


class SimilarityMask(nn.Module):
    """Keep the tokens whose contextual meaning stays closest to their own; project what is left (docs/design.md 6.3)."""

    def __init__(self, size: int, keep_rate: float):
        super().__init__()
        self.keep_rate = keep_rate
        self.output_projection = nn.Linear(size, size)
        self.layer_norm = nn.LayerNorm(size)

    def forward(self, contextual: Tensor, items: Tensor, gumbel: Tensor | None, real: Tensor | None = None) -> Tensor:
        """(B, N, T, D) twice, and noise (B, N, T) or None -> (B, N, T, D); a dropped token becomes one constant vector."""
        mask = self.mask(self.similarity(contextual, items), gumbel, real)
        masked = contextual * mask[..., None].to(contextual.dtype)
        return self.layer_norm(self.output_projection(masked) + masked)

    def similarity(self, contextual: Tensor, items: Tensor) -> Tensor:
        """Cosine (B, N, T) of each token to itself before context and position; norms are at least 1e-8.

        In fp32: similarities lie within some hundredths of each other, a few steps of bf16.
        """
        contextual, items = contextual.float(), items.float()
        dot = (contextual * items).sum(-1)
        return dot / (contextual.norm(dim=-1).clamp_min(1e-8) * items.norm(dim=-1).clamp_min(1e-8))

    def mask(self, similarity: Tensor, gumbel: Tensor | None, real: Tensor | None = None) -> Tensor:
        """1 on the floor(keep_rate * N * T) largest of a sample, jointly over its items, else 0.

        Straight-through: the gradient is that of the softmax over all N * T tokens.
        """
        logits = similarity.flatten(1) if gumbel is None else (similarity + gumbel).flatten(1)
        if real is not None:
            logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)  # -inf in a row without items would be NaN
        soft = logits.softmax(-1)
        kept = soft.topk(int(self.keep_rate * logits.shape[1]), dim=-1).indices
        hard = torch.zeros_like(soft).scatter_(1, kept, 1.0)
        if real is not None:  # a sample with fewer items keeps its share of those: the first of its sorted ones
            sizes = (self.keep_rate * real.sum(-1, keepdim=True, dtype=torch.float64)).floor()
            hard.scatter_(1, kept, (torch.arange(kept.shape[1], device=kept.device) < sizes).to(hard.dtype))
        # The bracket is exactly zero forward, whatever the rounding, and carries the gradient.
        return (hard + (soft - soft.detach())).view_as(similarity)


class MaskGenerator(nn.Module):
    """The fine step for one modality: which of the history's tokens to keep (docs/design.md 6.3)."""

    def __init__(self, size: int, num_tokens: int, num_layers: int, config: PreferenceConfig):
        super().__init__()
        self.base_transformer = BaseTransformer(size, num_tokens, num_layers, config)
        self.similarity_mask_layer = SimilarityMask(size, config.keep_rate)

    def forward(self, items: Tensor, gumbel: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """(B, N, T, D) -> (B, N, T, D)."""
        return self.similarity_mask_layer(self.base_transformer(items, real), items, gumbel, real)


class DualModalityFusion(nn.Module):
    """Pictures and titles of a history, read together (docs/design.md 6.4)."""

    def __init__(self, size: int, config: PreferenceConfig):
        super().__init__()
        inner = size * config.feed_forward_factor
        self.image_pos_encoding = nn.Parameter(torch.zeros(1, config.tokens_per_image, size))
        self.text_pos_encoding = nn.Parameter(torch.zeros(1, config.tokens_per_title, size))
        self.modality_embeddings = Table(2, size)
        self.proj = nn.Sequential(nn.Linear(size, inner), QuickGELU(), nn.Linear(inner, size))
        self.cross_modal_layers = nn.ModuleList(Block(size, config) for _ in range(config.fusion_layers))
        self.final_norm = nn.LayerNorm(size)
        self.output_proj = nn.Linear(size, size)

    def embed(self, images: Tensor, titles: Tensor) -> Tensor:
        """(B, N, Ti, D) and (B, Nt, Tt, D) -> (B, N*Ti + Nt*Tt, D), pictures first."""
        # Looked up and not indexed: ZeRO-3 gathers a module's weights when the module is called.
        of_image, of_title = self.modality_embeddings(torch.arange(2, device=images.device))
        images = images + _positions(self.image_pos_encoding, images.shape[2]) + of_image
        titles = titles + _positions(self.text_pos_encoding, titles.shape[2]) + of_title
        return self.proj(torch.cat((images.flatten(1, 2), titles.flatten(1, 2)), dim=1))

    def forward(self, images: Tensor, titles: Tensor, real: Tensor | None = None) -> Tensor:
        """As `embed`, read through the blocks: (B, N*Ti + Nt*Tt, D)."""
        x = self.embed(images, titles)
        visible = _visible(real)
        for layer in self.cross_modal_layers:
            x = layer(x, visible)
        return self.output_proj(self.final_norm(x))


class StyleEncoder(nn.Module):
    """Encodes each clicked picture by itself: its tokens attend to each other and to no other picture. Its output starts at zero.

    Masks and fusion see the tokens of all pictures together and cannot know which token is whose. Attention sums what it finds, so
    one unusual click can outweigh two plain ones. One embedding for each click can be averaged and compared, which separates the
    user's style from single clicks that do not fit it.
    """

    def __init__(self, size: int, config: PreferenceConfig):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.pos_encoding = nn.Parameter(torch.zeros(1, config.tokens_per_image, size))
        self.layers = nn.ModuleList(Block(size, config) for _ in range(config.style_layers))
        self.output_proj = nn.Linear(size, size)

    def forward(self, images: Tensor) -> Tensor:
        """Embedded pictures (B, N, T, D) -> an embedding of each (B, N, D)."""
        x = self.norm(images).flatten(0, 1) + _positions(self.pos_encoding, images.shape[2])
        for layer in self.layers:
            x = layer(x)
        return self.output_proj(x.mean(1)).unflatten(0, images.shape[:2])


class Preference(nn.Module):
    """The whole fine step: embedded history -> the rows that replace the prompt's slots, and the style embedding that is added
    where the picture begins."""

    def __init__(self, size: int, config: PreferenceConfig):
        super().__init__()
        self.residual, self.residual_gain = config.residual, config.residual_gain
        self.style_gain, self.agreement_weighting = config.style_gain, config.agreement_weighting
        text_layers = config.text_mask_layers or config.mask_layers
        self.visual_mask_generator = MaskGenerator(size, config.tokens_per_image, config.mask_layers, config)
        self.text_mask_generator = MaskGenerator(size, config.tokens_per_title, text_layers, config)
        self.dual_modality_fusion_encoder = DualModalityFusion(size, config)
        self.style_encoder = StyleEncoder(size, config) if config.style_layers else None
        self.register_load_state_dict_pre_hook(_with_current_names)

    def forward(
        self,
        images: Tensor,
        titles: Tensor,
        noise: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_items: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embedded pictures (B, N, Ti, D) and titles (B, Nt, Tt, D) -> (B, N*Ti, D) and (B, Nt*Tt, D).

        noise: add Gumbel noise before the masks' top-k; by default in training only. generator: one for all samples, or
        one each, so that a sample's noise does not depend on its neighbours. num_items (B,): how many of the N (= Nt)
        items each sample has, best on the host, where reading it waits for no device; rows of the others mean nothing. Without any
        title the published model skips the fusion; without any picture or title there is nothing to do.
        """
        noise = self.training if noise is None else noise
        fused_images, fused_titles = images.flatten(1, 2), titles.flatten(1, 2)
        num_images, num_titles = fused_images.shape[1], fused_titles.shape[1]
        real_images, real_titles = _real(images, num_items), _real(titles, num_items)
        if num_images:
            gumbel = _gumbel(images, generator, num_items) if noise else None
            images = self.visual_mask_generator(images, gumbel, real_images)
        if num_titles:
            gumbel = _gumbel(titles, generator, num_items) if noise else None
            titles = self.text_mask_generator(titles, gumbel, real_titles)
        real = None if num_items is None else torch.cat((real_images, real_titles), dim=1)
        if self.residual and num_images + num_titles:
            fused = self.dual_modality_fusion_encoder(images, titles, real)
            fused = self.residual_gain * fused
            return fused_images + fused[:, :num_images], fused_titles + fused[:, num_images:]
        if not num_titles:
            return images.flatten(1, 2), fused_titles
        fused = self.dual_modality_fusion_encoder(images, titles, real)
        return fused[:, :num_images], fused[:, num_images:]

    def style_embedding(self, clicks: Tensor, num_items: Tensor | None = None) -> Tensor:
        """Embeddings (B, N, D) of the clicks -> the style embedding (B, 1, D). In training the plain mean of a sample's clicks."""
        agreement = 0.0 if self.training else self.agreement_weighting
        return self.style_gain * style_embedding(clicks, num_items, agreement)[:, None]


def _with_current_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a training state of version 0.1.0 load, which names the style encoder otherwise."""
    for name in [name for name in state if name.startswith(prefix) and current_name(name) != name]:
        state[current_name(name)] = state.pop(name)


def _positions(table: Tensor, num_tokens: int) -> Tensor:
    """The first rows of a position table (1, n, D), repeated cyclically if it is too short."""
    return table.repeat(1, -(-num_tokens // table.shape[1]), 1)[:, :num_tokens]


def _real(items: Tensor, num_items: Tensor | None) -> Tensor | None:
    """True (B, N*T) on the tokens of a sample's own items; None when all are."""
    if num_items is None:
        return None
    own = torch.arange(items.shape[1], device=items.device) < num_items.to(items.device)[:, None]
    return own[:, :, None].expand(items.shape[:3]).flatten(1)


def _visible(real: Tensor | None) -> Tensor | None:
    """Who may look where, (B, 1, S, S): at real tokens, and at itself, since softmax over nothing is NaN."""
    if real is None:
        return None
    return real[:, None, None] | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)


def _gumbel(
    items: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None, num_items: Tensor | None = None
) -> Tensor:
    """Standard Gumbel noise (B, N, T) for items (B, N, T, D): -log of an exponential draw, made where the generator is.

    With a generator each, a sample draws for its own items only: what it would draw alone.
    """
    shape = items.shape[:3]
    if not isinstance(generator, Sequence):
        return _gumbel_draw(shape, generator, items.device)
    sizes = [shape[1]] * shape[0] if num_items is None else num_items.tolist()
    noise = torch.zeros(shape, device=items.device)
    for row, (size, own) in enumerate(zip(sizes, generator, strict=True)):
        noise[row, :size] = _gumbel_draw((1, size, shape[2]), own, items.device)[0]
    return noise


def _gumbel_draw(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    draw = torch.empty(tuple(shape), device=device if generator is None else generator.device, dtype=torch.float32)
    return -draw.exponential_(generator=generator).log().to(device)
