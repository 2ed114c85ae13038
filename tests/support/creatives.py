"""A background and a product: what finishing puts together."""

import io

import numpy as np
from PIL import Image

from adgen.finishing.finish import ProductFacts

BACKGROUND = np.asarray(Image.fromarray(np.random.default_rng(9).integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((64, 64)))


def file_of(picture: Image.Image, format="PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, format=format)
    return out.getvalue()


def mug() -> Image.Image:
    rgba = Image.new("RGBA", (120, 160), (0, 0, 0, 0))
    rgba.paste((180, 40, 40, 255), (30, 40, 95, 130))
    return rgba


PRODUCT = ProductFacts("Red mug 300ml", ("dishwasher safe",), cutout=file_of(mug()), scale=0.7)
