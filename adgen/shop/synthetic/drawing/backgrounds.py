"""The background styles that users prefer, and a product set on one."""

import numpy as np
from PIL import Image, ImageFilter

from adgen.shop.synthetic.drawing import scenes, surfaces
from adgen.shop.synthetic.drawing.texture import SIDE, X, Y, to_image

STYLES = {
    "studio": surfaces.studio,
    "wood": surfaces.wood,
    "marble": surfaces.marble,
    "brick": surfaces.brick,
    "kraft": surfaces.kraft,
    "neon": scenes.neon,
    "beach": scenes.beach,
    "botanical": scenes.botanical,
    "pastel": scenes.pastel,
    "snow": scenes.snow,
}
_SHADOW_SIDE = 64
_SHADOW_COLOUR = (18, 14, 22)


def draw_background(style: str, side: int, rng: np.random.Generator) -> Image.Image:
    """One picture of `style`, RGB `side` x `side`: a style is a distribution, no two of its pictures are alike."""
    return exposed(STYLES[style](rng), side, rng)


def exposed(picture: np.ndarray, side: int, rng: np.random.Generator) -> Image.Image:
    """A drawing (SIDE, SIDE, 3) as a photograph of it, RGB `side` x `side`."""
    # Exposure, warmth and vignette differ as between photographs, so that a style is more than its mean colour.
    warmth = rng.normal(0, 0.025)
    gain = rng.uniform(0.88, 1.08) * np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    vignette = 1 - rng.uniform(0.05, 0.4) * ((X - 0.5) ** 2 + (Y - 0.5) ** 2)
    image = to_image(picture * gain * vignette[..., None])
    return image if side == SIDE else image.resize((side, side), Image.Resampling.LANCZOS)


def set_on_background(cutout: Image.Image, background: Image.Image) -> Image.Image:
    """The cut-out (RGBA) over the background (RGB, same size), with its shadow; RGB."""
    scene = background.copy()
    scene.paste(_SHADOW_COLOUR, (0, 0), _shadow(cutout.getchannel("A")))
    scene.paste(cutout, (0, 0), cutout)
    return scene


def _shadow(alpha: Image.Image) -> Image.Image:
    """8-bit strength: dark where the product stands, and its soft shape a little down and to the right."""
    small = alpha.resize((_SHADOW_SIDE, _SHADOW_SIDE), Image.Resampling.BOX)
    left, top, right, bottom = small.getbbox()
    cast = Image.new("L", small.size)
    cast.paste(small.point(lambda value: value * 0.38), (2, 2))
    cast = cast.filter(ImageFilter.BoxBlur(3))
    flat = small.crop((left, top, right, bottom)).resize((right - left + 2, 5), Image.Resampling.BOX)
    foot = Image.new("L", small.size)
    foot.paste(flat.point(lambda value: min(255, value * 0.75)), (left - 1, bottom - 3))
    foot = foot.filter(ImageFilter.BoxBlur(1))
    both = np.maximum(np.asarray(cast), np.asarray(foot))
    return Image.fromarray(both).resize(alpha.size, Image.Resampling.BICUBIC)
