"""Shop pictures for a style classifier to learn from: products set on backgrounds, as a shop draws them, in memory."""

import io

import numpy as np
from PIL import Image

from adgen.shop.synthetic import people
from adgen.shop.synthetic.drawing.backgrounds import set_on_background
from adgen.shop.synthetic.drawing.products import draw_cutout
from adgen.shop.synthetic.draws import key_for
from adgen.shop.synthetic.shop import JPEG_QUALITY
from adgen.shop.synthetic.styles import TEN, StyleSet

STYLE_NAMES = TEN.names


def draw_style_pictures(seed: int, start: int, count: int, side: int, styles: StyleSet = TEN) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, side, side, 3) uint8 and the indices (count,) of their styles in `styles.names`.

    Picture `start + i` is a function of (seed, start + i). Their generators are none of any shop's, and they show looks of
    the train split only, so no picture of a held-out shop is among them.
    """
    looks = people.make_catalog(seed, "train", start + count, styles)
    pictures = np.empty((count, side, side, 3), np.uint8)
    for row in range(count):
        number = start + row
        rng = np.random.default_rng([key_for("style picture", seed), number])
        cutout = draw_cutout(*looks.look(number), side, rng)
        background = styles.background(styles.names[looks.style[number]], side, rng)
        pictures[row] = np.asarray(_as_in_a_shop(set_on_background(cutout, background)))
    return pictures, looks.style[start:]


def _as_in_a_shop(picture: Image.Image) -> Image.Image:
    """After its JPEG: what readers of a shop get to see."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return Image.open(out).convert("RGB")
