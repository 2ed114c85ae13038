"""A product's cut-out: kind, colour and pattern drawn large, then reduced to its place in the frame."""

import math

import numpy as np
from PIL import Image

from adgen.shop.synthetic.drawing import furnishings, tableware, wearables
from adgen.shop.synthetic.drawing.sketch import Colour, Sketch
from adgen.shop.synthetic.drawing.skins import paint_pattern, second_colour, shop_colour

KINDS = {
    "mug": tableware.mug,
    "bottle": tableware.bottle,
    "teapot": tableware.teapot,
    "planter": tableware.planter,
    "sneaker": wearables.sneaker,
    "hat": wearables.hat,
    "watch": wearables.watch,
    "t-shirt": wearables.t_shirt,
    "handbag": wearables.handbag,
    "backpack": wearables.backpack,
    "headphones": wearables.headphones,
    "umbrella": wearables.umbrella,
    "chair": furnishings.chair,
    "lamp": furnishings.lamp,
    "phone": furnishings.phone,
    "book": furnishings.book,
}
_TRIMS: tuple[Colour, ...] = ((246, 240, 228), (60, 62, 74), (196, 150, 96), (222, 222, 226), (120, 78, 52))
_OVERSAMPLING = 2.5  # canvas pixels per picture pixel: soft edges, at the largest size a product is shown


def draw_cutout(kind: str, colour: str, pattern: str, side: int, rng: np.random.Generator) -> Image.Image:
    """The product alone, RGBA `side` x `side`, transparent around it; it stands in the lower middle of the frame."""
    share = rng.uniform(0.58, 0.72)
    place_x, floor = rng.uniform(0.46, 0.54), rng.uniform(0.84, 0.91)
    sketch = _sketch(colour, pattern, round(side * 0.66 * _OVERSAMPLING), rng)
    KINDS[kind](sketch)
    product = sketch.image.crop(sketch.image.getbbox())
    scale = share * side / max(product.size)
    size = max(2, round(product.width * scale)), max(2, round(product.height * scale))
    product = product.resize(size, Image.Resampling.HAMMING)
    frame = Image.new("RGBA", (side, side))
    frame.paste(product, (round(place_x * side - size[0] / 2), round(floor * side) - size[1]))
    return frame


def share_of_frame(cutout: Image.Image) -> float:
    """The larger of the product's width and height over the frame's, rounded up, so that no one need shrink it."""
    left, top, right, bottom = cutout.getchannel("A").getbbox()
    largest = max((right - left) / cutout.width, (bottom - top) / cutout.height)
    return min(1.0, math.ceil(largest * 1000) / 1000)


def _sketch(colour: str, pattern: str, side: int, rng: np.random.Generator) -> Sketch:
    main = shop_colour(colour, rng)
    second = second_colour(main, rng)
    trims = [trim for trim in _TRIMS if sum(abs(a - b) for a, b in zip(trim, main, strict=True)) > 120]
    trim = trims[rng.integers(len(trims))]
    return Sketch(side, paint_pattern(pattern, side, main, second, rng), main, trim, rng)
