"""The real product on the generated background, at the product's own resolution.

    cut-out --square_frame--> frame (S, S) --product_placement--> box      what the model was shown
    background (N, N)  = the same frame at the model's size
    output (W, H)      = a window of the frame drawn L = max(W, H) pixels wide

Nothing is stretched: frame and background are squares, and an output of another aspect is cut from them. The product is
resampled once, from its original pixels to output pixels, with colours premultiplied by alpha, so that whatever colour
hides under transparent pixels cannot darken its edge.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from adgen.images import Placement, product_placement, square_frame


class Composite(NamedTuple):
    """A finished picture and what is needed to judge it."""

    picture: Image.Image
    """RGB, at the output size."""
    product_share: float
    """Share of the picture that the product's pixels take, 0..1, counting alpha."""
    product_inside: float
    """Share of the product that lies inside the picture, 0..1."""


def compose(background: Image.Image, cutout: Image.Image, scale: float, width: int, height: int) -> Composite:
    """The product of `cutout` (RGBA, any size) on `background` (RGB, square), as a (width, height) picture.

    The product lies where `place_product(square_frame(cutout), scale)` shows it to the model; `scale` is its largest
    share of the frame, 0..1. ValueError when the background is not square; PairError: no_cutout, invalid_scale.
    """
    if background.width != background.height:
        raise ValueError(f"the background is {background.width}x{background.height}, the model's pictures are square")
    placement = product_placement(square_frame(cutout), scale)
    zoom = max(width, height) / max(cutout.size)  # output pixels per frame pixel
    target = [edge * zoom for edge in placement.target]
    window = (_window(width, max(width, height), target[0::2]), _window(height, max(width, height), target[1::2]))
    canvas = np.asarray(_cover(background, window, width, height)).copy()
    product, (left, top) = _product_at_output(cutout, placement, zoom)
    area, inside = _blend(canvas, product, left - window[0], top - window[1])
    return Composite(Image.fromarray(canvas), inside / (width * height), inside / area if area else 0.0)


def _window(size: int, frame: int, product: list[float]) -> int:
    """First pixel of a window of `size` in a frame of `frame` pixels: centred, moved only to hold the product's span.

    A product longer than the window is centred in it; the gate product_visible judges what is lost.
    """
    start, end = product
    centred = (frame - size) / 2
    first = min(max(centred, end - size), start) if end - start <= size else (start + end - size) / 2
    return round(min(max(first, 0), frame - size))


def _cover(background: Image.Image, window: tuple[int, int], width: int, height: int) -> Image.Image:
    ratio = background.width / max(width, height)
    left, top = window[0] * ratio, window[1] * ratio
    box = (left, top, min(left + width * ratio, background.width), min(top + height * ratio, background.height))
    # Lanczos rings where it enlarges; bicubic does so less.
    kernel = Image.Resampling.BICUBIC if ratio <= 1 else Image.Resampling.LANCZOS
    return background.convert("RGB").resize((width, height), kernel, box=box)


def _product_at_output(cutout: Image.Image, placement: Placement, zoom: float) -> tuple[Image.Image, tuple[int, int]]:
    """All visible pixels of the cut-out at output size (premultiplied, mode RGBa), and where their corner goes.

    The model saw the box of alpha > 50 only; soft edges and shadows around it follow the same map, uncut.
    """
    visible = cutout.getchannel("A").getbbox()
    # The published truncation shortens both sides by up to a pixel; the longer one is nearer to the true ratio.
    crop, target = placement
    shrink = max((target[i + 2] - target[i]) / (crop[i + 2] - crop[i]) for i in (0, 1))
    corner = []
    for axis in (0, 1):
        margin = (max(cutout.size) - cutout.size[axis]) // 2  # square_frame's
        crop_centre = (crop[axis] + crop[axis + 2]) / 2
        target_centre = (target[axis] + target[axis + 2]) / 2
        corner.append(round(((visible[axis] + margin - crop_centre) * shrink + target_centre) * zoom))
    size = [max(1, round((visible[axis + 2] - visible[axis]) * shrink * zoom)) for axis in (0, 1)]
    product = cutout.crop(visible).convert("RGBa").resize(tuple(size), Image.Resampling.LANCZOS)
    return product, (corner[0], corner[1])


def _blend(canvas: np.ndarray, product: Image.Image, left: int, top: int) -> tuple[float, float]:
    """Alpha-blend onto `canvas` (H, W, 3) in place; (area of the product, area inside the canvas) in whole pixels."""
    pixels = np.asarray(product).astype(np.uint16)
    area = float(pixels[..., 3].sum()) / 255
    y, x = max(0, -top), max(0, -left)
    pixels = pixels[y : canvas.shape[0] - top, x : canvas.shape[1] - left]
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    under = canvas[top + y : top + y + pixels.shape[0], left + x : left + x + pixels.shape[1]]
    under[:] = np.minimum(colour + (under * (255 - alpha) + 127) // 255, 255)
    return area, float(alpha.sum()) / 255
