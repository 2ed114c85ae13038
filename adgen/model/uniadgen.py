"""The assembly: one module that holds every part, and the embedding of a prompt with its history."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adgen.model.config import STYLE_SLOT, ModelConfig
from adgen.model.decoder import Decoder
from adgen.model.foreground import ForegroundPerception
from adgen.model.image_tokens import ImageTokenEmbedding, ImageTokenHead, ImageTokenizer
from adgen.model.lora import add_lora
from adgen.model.preference import Preference


class UniAdGen(nn.Module):
    """Text and picture from one decoder; history through `preference`, the product through `foreground`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.decoder.hidden_size
        self.config = config
        self.decoder = Decoder(config.decoder, config.foreground.interval)
        if config.lora:
            add_lora(self.decoder, config.lora)
        self.foreground = ForegroundPerception(config)
        self.preference = Preference(width, config.preference)
        self.image_tokenizer = ImageTokenizer(config.image)
        self.image_embedding = ImageTokenEmbedding(config.image, width)
        self.image_head = ImageTokenHead(config.image, width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self.decoder.embed_tokens.weight.dtype

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Final-normed hidden states (..., D) -> logits over the vocabulary (..., vocab_size)."""
        return self.decoder.lm_head(hidden)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Final-normed hidden states (..., D) -> logits over the image codes (..., codebook_size)."""
        return self.image_head(hidden)

    def embed_history(
        self,
        image_codes: Tensor,
        title_ids: Tensor,
        noise: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_items: Tensor | None = None,
        clicks: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Codes (B, N, Ti) and title tokens (B, Nt, Tt) -> the rows of their slots, (B, N*Ti, D) and (B, Nt*Tt, D). A model
        with a style encoder appends the style embedding (B, 1, D) where there are pictures.

        noise, generator and num_items as in `Preference`; clicks (B, N, D): the result of `encode_clicks`, where it is known.
        """
        images, titles = self.image_embedding(image_codes), self.decoder.embed_tokens(title_ids)
        rows = self.preference(images, titles, noise, generator, num_items)
        if self.preference.style_encoder is None or not image_codes.shape[1]:
            return rows
        clicks = self.preference.style_encoder(images) if clicks is None else clicks
        return *rows, self.preference.style_embedding(clicks, num_items)

    def encode_clicks(self, image_codes: Tensor) -> Tensor:
        """Codes (B, N, Ti) -> an embedding of each clicked picture, (B, N, D); for a model with a style encoder."""
        return self.preference.style_encoder(self.image_embedding(image_codes))

    def embed_prompt(self, ids: Tensor, slots: Tensor, history: Tensor) -> Tensor:
        """Prompt tokens (B, T) with some positions taken from the history -> embeddings (B, T, D).

        slots (B, T) is -1 where the token's own embedding stands, else the row of history (B, R, D) that replaces it; at
        STYLE_SLOT the last row is added to the token's own.
        """
        own = self.decoder.embed_tokens(ids)
        if history.shape[1] == 0:
            return own
        rows = history.gather(1, slots.clamp_min(0)[..., None].expand(-1, -1, history.shape[-1]))
        embeds = torch.where((slots >= 0)[..., None], rows.to(own.dtype), own)
        if self.preference.style_encoder is None:
            return embeds
        return embeds + torch.where((slots == STYLE_SLOT)[..., None], history[:, -1:].to(own.dtype), 0.0)
