"""The stage `tokenizer`: the VQ that turns pictures into tokens (docs/design.md 6.10).

A picture is learned at the model's size and at the history's, since the tokenizer reads both.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adgen.generation.pictures import history_pixels, square_pixels
from adgen.generation.prompt import Prompter
from adgen.model.checkpoint import save
from adgen.model.config import ModelConfig
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen
from adgen.records import unit_interval
from adgen.training.codebook import MovingCodebook
from adgen.training.settings import TrainingSettings
from adgen.training.task import Batch, Collator, Metrics, Task, metric, trained_modules


class PictureCollator:
    """Rows with a `picture` (PNG) -> pixels at both sizes, (B, 3, S, S) in [-1, 1]; half of them mirrored."""

    def __init__(self, config: ModelConfig, settings: TrainingSettings):
        self.config, self.settings = config, settings

    def __call__(self, rows: Sequence[dict], epochs: Sequence[int] | None = None) -> Batch:
        pictures = [Image.open(io.BytesIO(row["picture"])).convert("RGB") for row in rows]
        for index, row in enumerate(rows):
            if epochs and unit_interval("mirror", self.settings.seed, epochs[index], row["number"]) < 0.5:
                pictures[index] = pictures[index].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = self.config.image
        return {
            "pixels": torch.stack([square_pixels(picture, image.image_size) for picture in pictures]),
            "small": torch.stack([history_pixels(picture, image) for picture in pictures]),
        }


class TokenizerTask(Task):
    """Reconstruction and commitment; the codebook follows by itself."""

    largest_zero_stage = 2
    self_updated = ("codebook.", "model.image_tokenizer.vqvae.quantize.")

    def __init__(self, model: UniAdGen, prompter: Prompter, settings: TrainingSettings):
        super().__init__()
        self.model, self.prompter, self.weights = model, prompter, settings.tokenizer
        image, own = model.config.image, settings.tokenizer
        self.codebook = MovingCodebook(image.codebook_size, image.code_size, own.decay, own.revive_below, settings.seed)
        model.requires_grad_(False)
        model.image_tokenizer.requires_grad_(True)
        self.table.requires_grad_(False)

    @property
    def table(self) -> Tensor:
        """The codebook (V, C)."""
        return self.model.image_tokenizer.vqvae.quantize.embedding.weight

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = self.losses(batch["pixels"], "")
        if self.weights.history:
            small, more = self.losses(batch["small"], "history_")
            loss, metrics = loss + self.weights.history * small, metrics | more
        return loss, metrics

    def losses(self, pixels: Tensor, prefix: str) -> tuple[Tensor, Metrics]:
        """The weighted loss of pictures of one size, and its parts."""
        own = self.weights
        made, commitment = self.reconstructed(pixels)
        made = made.float()
        error = made - pixels
        l1, l2 = error.abs().mean((1, 2, 3)), error.square().mean((1, 2, 3))
        loss = own.l1 * l1 + own.l2 * l2 + own.commitment * commitment
        metrics = {"l1": metric(l1), "l2": metric(l2), "commitment": metric(commitment)}
        return loss.mean(), {prefix + name: value for name, value in metrics.items()}

    def reconstructed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures through the tokenizer (straight-through at the codes), and each one's commitment loss (B,)."""
        tokenizer = self.model.image_tokenizer
        # Convolutions on CPUs are a fifth faster with a pixel's channels side by side.
        latents = tokenizer.latents(pixels.contiguous(memory_format=torch.channels_last))
        with torch.autocast(pixels.device.type, enabled=False):  # bf16's steps are as large as the distance of two near codes
            latents = F.normalize(latents.float(), dim=1)
            codes = tokenizer.quantize(latents)
            entries = tokenizer.codebook()[codes].transpose(1, 2).view_as(latents)
        if self.training:
            self.codebook.see(latents.movedim(1, -1).flatten(0, 2), codes.flatten())
        commitment = (latents - entries.detach()).square().sum(1).mean((1, 2))
        through = latents + (entries - latents).detach()
        vqvae = tokenizer.vqvae
        return vqvae.decoder(vqvae.post_quant_conv(through)), commitment

    def after_step(self, step: int) -> None:
        self.codebook.follow(self.table.data, step)

    def state_metrics(self) -> dict[str, float]:
        return self.codebook.measures()

    def tokens(self, batch: Batch) -> int:
        """Latents of both sizes."""
        factor = self.model.config.image.factor**2
        return sum(batch[name].numel() // 3 // factor for name in ("pixels", "small"))

    @torch.no_grad()
    def samples(self, rows: Sequence[dict], collator: Collator, seed: int) -> tuple[list[Image.Image], list[str]]:
        """Rows of (picture, reconstruction)."""
        pixels = collator(rows, None)["pixels"].to(self.model.device)
        made = self.reconstructed(pixels)[0]
        pictures = [
            Image.fromarray(each.cpu().numpy()) for pair in zip(pixels, made, strict=True) for each in to_uint8(torch.stack(pair))
        ]
        errors = (made - pixels).abs().mean((1, 2, 3)).tolist()
        return pictures, [f"l1 {error:.3f}" for error in errors]

    def export(self, directory: Path) -> None:
        """The whole model, its tokenizer trained. The table of image tokens starts from the codebook: old codes mean nothing
        any more, and near codes look alike."""
        self.model.image_embedding.gen_embed.weight.data.copy_(self.model.image_tokenizer.codebook())
        save(self.model, directory)
        self.prompter.save(directory)
        self.pass_on(directory, trained_modules(self.model))


def as_png(picture: Image.Image | np.ndarray) -> bytes:
    """A picture without loss, quick rather than small."""
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, "PNG", compress_level=1)
    return out.getvalue()
