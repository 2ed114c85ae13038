"""Pictures as the model reads them: clicked products, and the product to advertise. docs/design.md 6.6 and 6.8."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adgen.images import condition_square
from adgen.model.config import ForegroundConfig, ImageTokenConfig
from adgen.model.image_tokens import to_unit_range

_MIN_SIDE = 14
_GRAY = (127, 127, 127)


def history_pixels(picture: Image.Image, config: ImageTokenConfig) -> Tensor:
    """A clicked product's picture -> (3, S, S) in [-1, 1], S = history_size, for the image tokenizer.

    Squeezed to the source square first (aspect ignored), as the published weights have seen it.
    """
    return square_pixels(history_source(picture, config), config.history_size)


def history_source(picture: Image.Image, config: ImageTokenConfig) -> Image.Image:
    """A clicked product's picture squeezed to the square that the model is shown; done again it changes nothing."""
    side = config.history_source_size
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def square_pixels(picture: Image.Image, size: int) -> Tensor:
    """RGB -> (3, size, size) in [-1, 1]: the longer side to `size` (bicubic), padded with gray to a square."""
    longest = max(picture.size)
    width, height = (max(int(side / longest * size), min(_MIN_SIDE, size)) for side in picture.size)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (max(resized.size), max(resized.size)), _GRAY)
    square.paste(resized, ((square.width - width) // 2, (square.height - height) // 2))
    return to_unit_range(torch.from_numpy(np.array(square)))


def condition_pixels(cutout: Image.Image, max_ratio: float, config: ForegroundConfig) -> Tensor:
    """A product's cut-out (RGBA) -> (3, S, S) in [-1, 1], S = condition_size."""
    return square_condition(np.asarray(condition_square(cutout, max_ratio)), config)


def square_condition(square: np.ndarray, config: ForegroundConfig) -> Tensor:
    """A product's `adgen.images.condition_square`, (512, 512, 3) uint8 -> (3, S, S) in [-1, 1], S = condition_size.

    The range is [-1, 1] and not ImageNet's statistics (docs/design.md 6.6).
    """
    pixels = to_unit_range(torch.tensor(square))[None]
    size = (config.condition_size, config.condition_size)
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def picture_codes(pixels: Tensor, tokenizer: torch.nn.Module) -> Tensor:
    """Pixels (n, 3, S, S) -> codes (n, tokens) int64 on the CPU."""
    with torch.inference_mode():
        return tokenizer.encode(pixels.to(next(tokenizer.parameters()).device)).cpu()
