"""What every background is made of: a square grid, colours as floats, noise, and soft drawn layers.

Noise is cut from large fields that are made once a process from fixed seeds: a crop costs nothing, and a picture
depends only on the generator that chooses where to cut.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256  # backgrounds are made at this size, whatever size is asked for
_FIELD = 1280
Rgb = tuple[float, float, float] | np.ndarray

_axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
X = np.broadcast_to(_axis[None, :], (SIDE, SIDE))
Y = np.broadcast_to(_axis[:, None], (SIDE, SIDE))


def pick(rng: np.random.Generator, options: list) -> object:
    """One of `options`."""
    return options[rng.integers(len(options))]


def rgb(code: str, rng: np.random.Generator | None = None, jitter: float = 0.04) -> np.ndarray:
    """'#rrggbb' as three floats in 0..1, a little off when a generator is given."""
    values = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    return values if rng is None else np.clip(values + rng.normal(0, jitter, 3), 0, 1).astype(np.float32)


def mix(a: Rgb, b: Rgb, amount: np.ndarray | float) -> np.ndarray:
    """From colour (or picture) `a` to `b` by `amount`, a number or a (SIDE, SIDE) map; (SIDE, SIDE, 3)."""
    amount = np.asarray(amount, np.float32)[..., None]
    return np.asarray(a, np.float32) + (np.asarray(b, np.float32) - np.asarray(a, np.float32)) * amount


def step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, name: str = "cloud") -> np.ndarray:
    """A (SIDE, SIDE) crop of a noise field with mean 0 and deviation 1: cloud, fine, grain (long in x), speck."""
    field = _field(name)
    top, left = rng.integers(0, _FIELD - SIDE, 2)
    flip = rng.integers(4)
    crop = field[top : top + SIDE, left : left + SIDE]
    crop = crop[::-1] if flip & 1 else crop
    return crop[:, ::-1] if flip & 2 else crop


@lru_cache(maxsize=8)
def _field(name: str) -> np.ndarray:
    rng = np.random.default_rng([20260101, sum(name.encode())])
    layers = {
        "cloud": [(5, 5, 1.0), (10, 10, 0.5), (20, 20, 0.25), (40, 40, 0.12), (80, 80, 0.06)],
        "fine": [(120, 120, 0.5), (320, 320, 0.6), (1280, 1280, 0.5)],
        "grain": [(6, 160, 0.7), (16, 500, 0.6), (60, 1280, 0.3)],
        "speck": [(1280, 1280, 1.0)],
    }[name]
    total = np.zeros((_FIELD, _FIELD), np.float32)
    for columns, rows, strength in layers:
        small = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
        total += strength * np.asarray(small.resize((_FIELD, _FIELD), Image.Resampling.BICUBIC))
    return (total - total.mean()) / total.std()


def layer(draw: Callable[[ImageDraw.ImageDraw, float], None], blur: float = 0.0, side: int = 2 * SIDE) -> np.ndarray:
    """What `draw(pen, side)` paints in white on black, as (SIDE, SIDE) in 0..1; `blur` in pixels of SIDE."""
    small = Image.new("L", (side, side))
    draw(ImageDraw.Draw(small), side)
    if blur:
        small = small.filter(ImageFilter.BoxBlur(blur * side / SIDE)).filter(ImageFilter.BoxBlur(blur * side / SIDE))
    if side != SIDE:
        small = small.reduce(side // SIDE) if side > SIDE else small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / 255


def painted(picture: np.ndarray, draw: Callable[[ImageDraw.ImageDraw, float], None]) -> np.ndarray:
    """`picture` with what `draw(pen, side)` paints on it in colour, edges smooth."""
    image = to_image(picture).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BILINEAR)
    draw(ImageDraw.Draw(image), 2 * SIDE)
    return np.asarray(image.reduce(2), np.float32) / 255


def to_image(picture: np.ndarray) -> Image.Image:
    """(SIDE, SIDE, 3) floats in 0..1 as an 8-bit picture."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def bytes_of(colour: Rgb) -> tuple[int, int, int]:
    """A float colour as Pillow takes it."""
    return tuple(round(float(value) * 255) for value in np.clip(colour, 0, 1))
