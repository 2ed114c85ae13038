"""A transparent square canvas for drawing one product, several times larger than the picture it will be in.

Coordinates are in 0..1 of the canvas, y down. Every drawn pixel is opaque here; edges get their soft alpha when the
canvas is reduced.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
Paint = Colour | Image.Image

SHADOW_TINT = (24, 16, 40)  # darker, and a little colder, than black paint would be
LIGHT_TINT = (255, 252, 244)
_SHADE_SIDE = 64


class Sketch:
    """The canvas, what the product is painted with, and its generator for the product's own proportions."""

    def __init__(self, side: int, skin: Paint, colour: Colour, trim: Colour, rng: np.random.Generator):
        self.side = side
        self.image = Image.new("RGBA", (side, side))
        self.skin, self.colour, self.trim = skin, colour, trim
        self.rng = rng

    def vary(self, low: float, high: float) -> float:
        """A proportion of this product."""
        return float(self.rng.uniform(low, high))

    def polygon(self, points: Points, paint: Paint | None = None, shade: str = "soft") -> None:
        """A filled polygon; `paint` defaults to the product's skin."""
        corners = np.asarray(points, np.float32) * self.side
        self._fill(corners, lambda pen, at: pen.polygon([tuple(p) for p in corners - at], fill=255), paint, shade)

    def curve(self, points: Points, paint: Paint | None = None, shade: str = "soft") -> None:
        """A filled closed curve through `points`."""
        self.polygon(_smooth(points), paint, shade)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, paint: Paint | None = None, shade: str = "soft") -> None:
        """A filled ellipse in the box."""
        corners = np.array([[x0, y0], [x1, y1]], np.float32) * self.side
        self._fill(corners, lambda pen, at: pen.ellipse([*(corners - at).ravel()], fill=255), paint, shade)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        paint: Paint | None = None,
        shade: str = "soft",
        radius: float = 0.0,
    ) -> None:
        """A filled rectangle with round corners."""
        corners = np.array([[x0, y0], [x1, y1]], np.float32) * self.side
        round_px = radius * self.side
        self._fill(corners, lambda pen, at: pen.rounded_rectangle([*(corners - at).ravel()], round_px, fill=255), paint, shade)

    def line(self, points: Points, width: float, colour: Colour, smooth: bool = False) -> None:
        """A line with round ends, `width` in canvas units."""
        path = [(x * self.side, y * self.side) for x, y in (_smooth(points, closed=False) if smooth else points)]
        pen, half = ImageDraw.Draw(self.image), width * self.side / 2
        pen.line(path, fill=(*colour, 255), width=max(1, round(2 * half)), joint="curve")
        for x, y in (path[0], path[-1]):
            pen.ellipse([x - half, y - half, x + half, y + half], fill=(*colour, 255))

    def ring(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        """An ellipse's outline, drawn inwards; what it surrounds is left as it was."""
        box = [value * self.side for value in (x0, y0, x1, y1)]
        ImageDraw.Draw(self.image).ellipse(box, outline=(*colour, 255), width=max(1, round(width * self.side)))

    def arc(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, width: float, colour: Colour) -> None:
        """Part of an ellipse's outline, from `start` to `end` degrees clockwise from the right."""
        box = [value * self.side for value in (x0, y0, x1, y1)]
        width_px = max(1, round(width * self.side))
        ImageDraw.Draw(self.image).arc(box, start, end, fill=(*colour, 255), width=width_px)

    def _fill(
        self,
        corners: np.ndarray,
        draw: Callable[[ImageDraw.ImageDraw, np.ndarray], None],
        paint: Paint | None,
        shade: str,
    ) -> None:
        # Only the shape's own box is touched: most parts are a small share of the canvas.
        left, top = np.clip(np.floor(corners.min(axis=0)), 0, self.side - 1).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 1, 1, self.side).astype(int)
        mask = Image.new("L", (int(right - left), int(bottom - top)))
        draw(ImageDraw.Draw(mask), np.array([left, top], np.float32))
        paint = self.skin if paint is None else paint
        box = (int(left), int(top), int(right), int(bottom))
        self.image.paste((*paint, 255) if isinstance(paint, tuple) else paint.crop(box), box, mask)
        if shade != "none":
            for tint, tone in zip((SHADOW_TINT, LIGHT_TINT), _shades(shade), strict=True):
                self.image.paste((*tint, 255), box, ImageChops.multiply(mask, tone.resize(mask.size, Image.Resampling.BILINEAR)))


def darker(colour: Colour, amount: float = 0.35) -> Colour:
    """`colour` towards black."""
    return tuple(round(value * (1 - amount)) for value in colour)


def lighter(colour: Colour, amount: float = 0.35) -> Colour:
    """`colour` towards white."""
    return tuple(round(value + (255 - value) * amount) for value in colour)


@lru_cache(maxsize=16)
def _shades(name: str) -> tuple[Image.Image, Image.Image]:
    """(shadow, light) strength over a shape's box, 8-bit grey."""
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    if name == "round":  # an upright cylinder lit from the left
        shadow = 0.62 * np.clip(np.abs(x - 0.36) / 0.64, 0, 1) ** 1.7
        light = 0.55 * np.exp(-(((x - 0.24) / 0.09) ** 2)) + 0.12 * np.exp(-(((x - 0.94) / 0.04) ** 2))
    elif name == "ball":
        distance = np.hypot(x - 0.38, y - 0.32)
        shadow = 0.65 * np.clip(distance - 0.18, 0, 1) ** 1.3
        light = 0.6 * np.exp(-((distance / 0.17) ** 2))
    elif name == "cloth":  # soft folds
        shadow = 0.16 * (1 + np.sin(9 * x + 3 * y)) * (0.4 + 0.6 * y) + 0.2 * np.clip(x - 0.6, 0, 1)
        light = 0.10 * (1 + np.sin(9 * x + 3 * y + 2.2))
    elif name == "glass":  # a diagonal reflection
        shadow = 0.25 * y
        light = 0.5 * (np.abs(x + 0.55 * y - 0.62) < 0.1) + 0.3 * (np.abs(x + 0.55 * y - 0.84) < 0.04)
    else:  # soft: lit from the upper left
        shadow = 0.42 * np.clip(0.55 * x + 0.75 * y - 0.35, 0, 1)
        light = 0.28 * np.clip(0.8 - x - 0.9 * y, 0, 1)
    return tuple(Image.fromarray((np.clip(tone, 0, 1) * 255).astype(np.uint8)) for tone in (shadow, light))


def _smooth(points: Points, closed: bool = True, steps: int = 10) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through `points`."""
    p = np.asarray(points, np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    path = np.concatenate(pieces if closed else [*pieces, p[-2:-1]])
    return [(float(x), float(y)) for x, y in path]
