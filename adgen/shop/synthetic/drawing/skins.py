"""What a product is painted with: its colour, and its pattern as a picture as large as its canvas."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from adgen.shop.synthetic.drawing.sketch import Colour, darker, lighter

# hue 0..1, saturation, value; a product's own colour varies a little around it
COLOURS = {
    "red": (0.99, 0.80, 0.82),
    "orange": (0.07, 0.85, 0.95),
    "yellow": (0.135, 0.78, 0.97),
    "green": (0.36, 0.62, 0.60),
    "teal": (0.49, 0.70, 0.62),
    "blue": (0.60, 0.72, 0.80),
    "purple": (0.76, 0.52, 0.66),
    "pink": (0.93, 0.42, 0.96),
    "brown": (0.065, 0.58, 0.48),
    "black": (0.65, 0.12, 0.17),
    "white": (0.10, 0.04, 0.96),
    "grey": (0.60, 0.06, 0.58),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "two-tone")


def shop_colour(name: str, rng: np.random.Generator) -> Colour:
    """One product's version of the named colour."""
    hue, saturation, value = COLOURS[name]
    saturation *= rng.uniform(0.88, 1.08)
    value *= rng.uniform(0.92, 1.04)
    red, green, blue = colorsys.hsv_to_rgb((hue + rng.uniform(-0.012, 0.012)) % 1, min(saturation, 1), min(value, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def second_colour(colour: Colour, rng: np.random.Generator) -> Colour:
    """A colour that a pattern can be seen in on `colour`: cream on dark, a deeper shade or navy on light."""
    brightness = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]
    if brightness < 150:
        return (250, 243, 228) if rng.random() < 0.75 else lighter(colour, 0.55)
    return darker(colour, 0.55) if rng.random() < 0.6 else (38, 44, 78)


def paint_pattern(pattern: str, side: int, colour: Colour, second: Colour, rng: np.random.Generator) -> Image.Image:
    """The pattern over a whole canvas of `side` pixels, RGBA and opaque."""
    image = Image.new("RGBA", (side, side), (*colour, 255))
    if pattern == "plain":
        return image
    _DRAWN[pattern](ImageDraw.Draw(image), side, (*second, 255), (*_between(colour, second), 255), rng)
    return image


def _between(a: Colour, b: Colour) -> Colour:
    return tuple((x + y) // 2 for x, y in zip(a, b, strict=True))


def _striped(pen, side, second, _middle, rng) -> None:
    step = side * rng.uniform(0.085, 0.13)
    width, upright = step * rng.uniform(0.4, 0.52), rng.random() < 0.5
    for start in np.arange(rng.uniform(-step, 0), side, step):
        box = [start, 0, start + width, side] if upright else [0, start, side, start + width]
        pen.rectangle(box, fill=second)


def _dotted(pen, side, second, _middle, rng) -> None:
    step = side * rng.uniform(0.10, 0.14)
    radius = step * rng.uniform(0.24, 0.32)
    for row in range(int(side / step) * 2 + 3):
        for column in range(int(side / step) + 2):
            x, y = (column + 0.5 * (row % 2)) * step, row * step * 0.55
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=second)


def _checked(pen, side, second, middle, rng) -> None:
    step = side * rng.uniform(0.10, 0.15)
    bands = [(start, start + step / 2) for start in np.arange(rng.uniform(-step, 0), side, step)]
    for start, end in bands:
        pen.rectangle([start, 0, end, side], fill=middle)
        pen.rectangle([0, start, side, end], fill=middle)
    for x0, x1 in bands:
        for y0, y1 in bands:
            pen.rectangle([x0, y0, x1, y1], fill=second)


def _zigzag(pen, side, second, _middle, rng) -> None:
    step = side * rng.uniform(0.11, 0.15)
    xs = np.arange(-step, side + step, step / 2)
    for top in np.arange(-step, side + step, step):
        points = [(x, top + (step * 0.45 if index % 2 else 0)) for index, x in enumerate(xs)]
        pen.line(points, fill=second, width=round(step * 0.34))


def _two_tone(pen, side, second, _middle, rng) -> None:
    cut, slope = rng.uniform(0.5, 0.6) * side, rng.choice([0.0, 0.0, 0.25, -0.25]) * side
    pen.polygon([(0, cut + slope), (side, cut - slope), (side, side), (0, side)], fill=second)


_DRAWN = {"striped": _striped, "dotted": _dotted, "checked": _checked, "zigzag": _zigzag, "two-tone": _two_tone}
