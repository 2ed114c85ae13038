"""Pictures as the tensors that the metrics take, and the product as a creative shows it."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adgen.finishing.paste import compose


def as_pixels(picture: Image.Image, side: int) -> Tensor:
    """A picture as (3, side, side) in 0..1, RGBA as (4, side, side); stretched to the square, colours not darkened by
    transparent pixels."""
    if picture.mode == "RGBA":
        resized = picture.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")
    else:
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BOX)
    return as_tensor(resized)


def as_tensor(picture: Image.Image) -> Tensor:
    """A picture as (C, H, W) in 0..1, at its own size."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def stacked(pictures: Sequence[Image.Image], side: int) -> Tensor:
    """`as_pixels` of pictures of one mode: (N, C, side, side)."""
    return torch.stack([as_pixels(picture, side) for picture in pictures])


def placed_product(cutout: Image.Image, scale: float, width: int, height: int) -> Image.Image:
    """The product of `cutout` (RGBA) alone, where finishing puts it in a (width, height) creative; RGBA.

    Found by pasting it on white and on black, so that it is finishing's own place whatever the output's shape.
    PairError: no_cutout, invalid_scale.
    """
    white, black = (
        np.asarray(compose(Image.new("RGB", (2, 2), 3 * (level,)), cutout, scale, width, height).picture, np.float32)
        for level in (255, 0)
    )
    alpha = 255 - (white - black).mean(axis=2, keepdims=True)
    colour = np.where(alpha > 0, black * 255 / np.maximum(alpha, 1), 0)
    return Image.fromarray(np.concatenate([colour, alpha], axis=2).clip(0, 255).round().astype(np.uint8))
