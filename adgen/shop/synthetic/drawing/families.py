"""Styles drawn from continuous families: a seed fixes palette, texture, light and layout, and no two seeds look alike.

A style is a distribution, as the ten named ones are: its pictures share what the seed fixed, and differ in everything else.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adgen.shop.synthetic.drawing.texture import SIDE, X, Y, mix, noise, step

Field = np.ndarray  # (SIDE, SIDE) in 0..1


@dataclass(frozen=True)
class Family:
    """What all pictures of one style share."""

    colours: np.ndarray  # (4, 3): ground, figure, accent, floor
    texture: Callable[[np.random.Generator], Field]
    contrast: float
    """How far the texture's figure is from its ground, 0..1."""
    second: Callable[[np.random.Generator], Field]
    accent: float
    """Strength of the second texture; 0 in half of the styles."""
    floor: float | None
    """Where a table or floor begins, as a share of the height; None without one."""
    light: tuple[float, float, float]
    """Direction (radians), strength and roughness of the light."""


def family(seed: int) -> Family:
    """The style of a seed."""
    rng = np.random.default_rng([20261130, seed])
    textures = list(_TEXTURES)
    chosen = rng.integers(len(textures), size=2)
    return Family(
        colours=_palette(rng),
        texture=textures[chosen[0]](rng),
        contrast=rng.uniform(0.25, 1.0),
        second=textures[chosen[1]](rng),
        accent=rng.uniform(0.2, 0.7) if rng.random() < 0.5 else 0.0,
        floor=rng.uniform(0.55, 0.8) if rng.random() < 0.35 else None,
        light=(rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35), rng.uniform(0, 0.12)),
    )


def draw_family(style: Family, rng: np.random.Generator) -> np.ndarray:
    """One picture of a style, (SIDE, SIDE, 3) in 0..1 and a little beyond."""
    ground, figure, accent, floor = np.clip(style.colours + rng.normal(0, 0.018, (4, 3)), 0, 1).astype(np.float32)
    picture = mix(ground, figure, style.texture(rng) * style.contrast)
    if style.accent:
        picture = mix(picture, accent, style.second(rng) * style.accent)
    if style.floor is not None:
        horizon = style.floor + rng.uniform(-0.04, 0.04)
        shaded = floor * (0.85 + 0.3 * step(Y, horizon, 1.0))[..., None]
        picture = mix(picture, shaded, step(Y, horizon - 0.01, horizon + 0.01))
    angle, strength, rough = style.light
    angle = angle + rng.normal(0, 0.3)
    slope = (X - 0.5) * math.cos(angle) + (Y - 0.5) * math.sin(angle)
    return picture * (1 + strength * 1.4 * slope + rough * noise(rng) + 0.3 * rough * noise(rng, "fine"))[..., None]


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Four colours that go together: hues around one, or opposite to it; any brightness."""
    hue, spread = rng.random(), rng.uniform(0.02, 0.16)
    saturation, value = rng.beta(1.2, 1.4), 0.12 + 0.86 * rng.random()
    rows = []
    for index in range(4):
        turn = rng.normal(0, spread) + (0.5 if index == 2 and rng.random() < 0.5 else 0.0)
        other = value if index == 0 else np.clip(value + rng.choice([-1, 1]) * rng.uniform(0.15, 0.5), 0.05, 1.0)
        rows.append(colorsys.hsv_to_rgb((hue + turn) % 1, np.clip(saturation + rng.normal(0, 0.15), 0, 1), other))
    return np.array(rows, np.float32)


# -- textures: each takes what a style fixes, and gives what draws a picture's field --------------------------------------


def _turned(rng: np.random.Generator) -> tuple[float, float]:
    """Cosine and sine of a style's direction: level, upright, or any."""
    angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, math.pi)])
    return math.cos(angle), math.sin(angle)


def _stripes(rng: np.random.Generator) -> Callable:
    (cos, sin), count, share, soft = _turned(rng), rng.uniform(3, 18), rng.uniform(0.25, 0.7), rng.uniform(0.03, 0.3)
    bend = rng.uniform(0, 0.06) if rng.random() < 0.4 else 0.0

    def field(draw: np.random.Generator) -> Field:
        place = (X * cos + Y * sin) * count * draw.uniform(0.9, 1.1) + draw.random() + bend * count * noise(draw)
        return step(share / 2 - np.abs(place % 1 - 0.5), -soft / 2, soft / 2)

    return field


def _checks(rng: np.random.Generator) -> Callable:
    (cos, sin), count, soft = _turned(rng), rng.uniform(2.5, 10), rng.uniform(0.02, 0.2)
    gingham = rng.random() < 0.5

    def field(draw: np.random.Generator) -> Field:
        size, (left, top) = count * draw.uniform(0.9, 1.1), draw.random(2)
        across = step(0.25 - np.abs((X * cos + Y * sin) * size % 1 + left - 1 * (left > 0.5) - 0.5) % 1, -soft, soft)
        along = step(0.25 - np.abs((Y * cos - X * sin) * size % 1 + top - 1 * (top > 0.5) - 0.5) % 1, -soft, soft)
        return (across + along) / 2 if gingham else np.abs(across - along)

    return field


def _dots(rng: np.random.Generator) -> Callable:
    (cos, sin), count, radius, soft = _turned(rng), rng.uniform(3, 12), rng.uniform(0.15, 0.42), rng.uniform(0.03, 0.2)

    def field(draw: np.random.Generator) -> Field:
        size, (left, top) = count * draw.uniform(0.9, 1.1), draw.random(2)
        u, v = (X * cos + Y * sin) * size + left, (Y * cos - X * sin) * size + top
        u = u + 0.5 * (np.floor(v) % 2)
        return step(radius - np.hypot(u % 1 - 0.5, v % 1 - 0.5), -soft / 2, soft / 2)

    return field


def _tiles(rng: np.random.Generator) -> Callable:
    wide, high, joint = rng.uniform(2, 7), rng.uniform(3, 12), rng.uniform(0.02, 0.12)
    shift, uneven = rng.choice([0.0, 0.5]), rng.uniform(0.0, 0.6)

    def field(draw: np.random.Generator) -> Field:
        left, top = draw.random(2)
        v = Y * high + top
        u = X * wide + left + shift * (np.floor(v) % 2)
        edge = np.minimum(np.abs(u % 1 - 0.5) * high / wide, np.abs(v % 1 - 0.5))
        tone = draw.random((32, 32))[np.floor(v).astype(int) % 32, np.floor(u).astype(int) % 32]
        return np.clip(step(0.5 - edge, 0.0, joint) * (1 - uneven * tone), 0, 1)

    return field


def _clouds(rng: np.random.Generator) -> Callable:
    low, width, fine = rng.uniform(-0.8, 0.4), rng.uniform(0.2, 1.6), rng.uniform(0, 0.5)

    def field(draw: np.random.Generator) -> Field:
        return step(noise(draw) + fine * noise(draw, "fine"), low, low + width)

    return field


def _grain(rng: np.random.Generator) -> Callable:
    upright, low, width = rng.random() < 0.4, rng.uniform(-1, 0), rng.uniform(0.8, 2.5)
    boards, gap = rng.integers(1, 8), rng.uniform(0, 0.9)

    def field(draw: np.random.Generator) -> Field:
        grain, across = noise(draw, "grain"), X if upright else Y
        place = across * boards + draw.random()
        tone = draw.normal(0, 0.5, 16)[np.floor(place).astype(int)]
        made = step((grain.T if upright else grain) + tone, low, low + width)
        return made * (1 - gap * np.exp(-((np.abs(place - np.round(place)) / 0.025) ** 2)))

    return field


def _speckles(rng: np.random.Generator) -> Callable:
    count, least, most = int(rng.integers(12, 90)), rng.uniform(0.01, 0.04), rng.uniform(0.04, 0.12)
    stretch, soft = rng.uniform(1, 3), rng.uniform(0.1, 0.9)

    def field(draw: np.random.Generator) -> Field:
        total = np.zeros((SIDE, SIDE), np.float32)
        for x, y, size, angle in zip(
            draw.random(count), draw.random(count), draw.uniform(least, most, count), draw.uniform(0, math.pi, count), strict=True
        ):
            reach = size * stretch
            rows = slice(max(0, int((y - reach) * SIDE)), int((y + reach) * SIDE) + 2)
            columns = slice(max(0, int((x - reach) * SIDE)), int((x + reach) * SIDE) + 2)
            dx, dy = X[rows, columns] - x, Y[rows, columns] - y
            u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
            distance = np.hypot(u / stretch, v) / size
            np.maximum(total[rows, columns], 1 - step(distance, 1 - soft, 1.0), out=total[rows, columns])
        return total

    return field


def _glow(rng: np.random.Generator) -> Callable:
    x, y, reach, turns = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.7), rng.uniform(0.15, 0.7), rng.choice([0, 0, rng.uniform(2, 8)])

    def field(draw: np.random.Generator) -> Field:
        distance = np.hypot(X - x + draw.normal(0, 0.05), Y - y + draw.normal(0, 0.05)) / reach
        glow = np.exp(-(distance**2))
        return glow if turns == 0 else glow * (0.5 + 0.5 * np.cos(distance * turns * math.pi))

    return field


def _slope(rng: np.random.Generator) -> Callable:
    (cos, sin), low, width = _turned(rng), rng.uniform(-0.4, 0.2), rng.uniform(0.1, 0.9)

    def field(draw: np.random.Generator) -> Field:
        along = (X - 0.5) * cos + (Y - 0.5) * sin + draw.normal(0, 0.04)
        return step(along, low, low + width)

    return field


_TEXTURES = (_stripes, _checks, _dots, _tiles, _clouds, _grain, _speckles, _glow, _slope)
