"""A small classifier of background styles, trained from nothing in a minute. It knows pictures and labels, no shop.

It sees what a picture shows around its product; where the product stands and what it is says nothing, as
every style has all products. Blur, noise and light are varied while it learns, since a generated picture is softer than
a real one, and that must not decide.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.image_tokens import to_unit_range

LARGEST_SIDE = 64  # pixels: a style shows at this size, and a larger picture takes longer
EPOCHS = 8
BATCH = 64
LEARNING_RATE = 3e-3


class StyleClassifier(nn.Module):
    """Pictures in [-1, 1] (B, 3, S, S) -> logits (B, num_styles)."""

    def __init__(self, num_styles: int, widths: tuple[int, ...] = (24, 48, 96)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], num_styles)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features(pixels)
        # The mean says what most of the picture is, the maximum what stands in it somewhere: a tube, a leaf, a joint.
        return self.head(torch.cat((features.mean((2, 3)), features.amax((2, 3))), dim=1))

    @torch.no_grad()
    def styles(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (n, S, S, 3) uint8 -> indices (n,) of their likeliest styles."""
        self.eval()
        parts = [self(as_pixels(pictures[start : start + 256])).argmax(-1) for start in range(0, len(pictures), 256)]
        return torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)


def train_style_classifier(
    pictures: np.ndarray,
    styles: np.ndarray,
    num_styles: int,
    seed: int = 0,
    epochs: int = EPOCHS,
    each: Callable[[int], None] = lambda count: None,
) -> StyleClassifier:
    """A classifier of pictures (n, S, S, 3) uint8 by labels (n,). `each` gets the number of pictures of every step.

    The same pictures and seed give the same classifier on the same machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StyleClassifier(num_styles)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures), generator=generator).split(BATCH):
            pixels = varied(as_pixels(pictures[chosen.numpy()]), generator)
            loss = F.cross_entropy(model(pixels), torch.from_numpy(styles[chosen.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            each(len(chosen))
    return model.eval()


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, T, T) in [-1, 1], T at most LARGEST_SIDE."""
    pixels = to_unit_range(torch.from_numpy(np.ascontiguousarray(pictures)))
    if pixels.shape[-1] <= LARGEST_SIDE:
        return pixels
    return F.interpolate(pixels, (LARGEST_SIDE, LARGEST_SIDE), mode="bilinear", align_corners=False, antialias=True)


def as_array(picture: Image.Image, side: int) -> np.ndarray:
    """A picture as (side, side, 3) uint8."""
    picture = picture.convert("RGB")
    return np.asarray(picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS))


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures (B, 3, S, S) mirrored, softened, lit and speckled by chance."""
    draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    size = len(pixels)
    pixels = torch.where(draw(size, 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
    soft = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    pixels = pixels + (soft - pixels) * draw(size, 1, 1, 1)
    light = 0.9 + 0.2 * draw(size, 1, 1, 1)
    speckle = torch.randn(pixels.shape, generator=generator) * 0.06 * draw(size, 1, 1, 1)
    return ((pixels + 1) * light - 1 + speckle).clamp(-1, 1)
