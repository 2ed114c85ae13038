"""Backgrounds that are a material: studio paper, wood, marble, brick, kraft. Each returns (SIDE, SIDE, 3) in 0..1."""

import colorsys

import numpy as np

from adgen.shop.synthetic.drawing.texture import SIDE, X, Y, layer, mix, noise, painted, pick, rgb, step


def studio(rng: np.random.Generator) -> np.ndarray:
    """A paper sweep in one soft colour, lit by a spot."""
    hue, saturation = rng.random(), rng.uniform(0.02, 0.38)
    wall = np.array(colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.5, 0.82)), np.float32)
    floor = np.array(colorsys.hsv_to_rgb(hue, saturation * 0.8, rng.uniform(0.7, 0.95)), np.float32)
    horizon = rng.uniform(0.58, 0.72)
    picture = mix(wall, floor, step(Y, horizon - 0.07, horizon + 0.12))
    spot = np.exp(-(((X - rng.uniform(0.3, 0.7)) / 0.42) ** 2) - ((Y - rng.uniform(0.25, 0.45)) / 0.38) ** 2)
    return picture * (0.82 + 0.36 * spot)[..., None] + 0.004 * noise(rng, "speck")[..., None]


def wood(rng: np.random.Generator) -> np.ndarray:
    """Planks with grain, sunlight falling across them through a window."""
    base = rgb(pick(rng, ["#b9834f", "#9a6a3f", "#c99a63", "#7d5a3c", "#a98f74"]), rng, 0.025)
    along, across = (X, Y) if rng.random() < 0.6 else (Y, X)
    boards = rng.integers(3, 7)
    position = across * boards + rng.random()
    index = np.floor(position).astype(int)
    grain, cloud = noise(rng, "grain"), noise(rng)
    if along is Y:
        grain = grain.T
    rings = np.sin(22 * across * boards / 4 + 2.5 * cloud + 5 * rng.standard_normal(9)[index] + 1.5 * along)
    tone = 1 + 0.09 * rng.standard_normal(9)[index] + 0.055 * grain + 0.035 * rings
    edge = np.abs(position - np.round(position))
    tone = tone * (1 - 0.55 * np.exp(-((edge / 0.018) ** 2)))
    return base * tone[..., None] * (0.86 + 0.42 * _window_light(rng))[..., None]


def _window_light(rng: np.random.Generator) -> np.ndarray:
    lean, left, wide = rng.uniform(0.25, 0.7) * pick(rng, [-1, 1]), rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.3)

    def draw(pen, side):
        for pane in range(2):
            for row in range(2):
                x, y = left + pane * (wide + 0.045), -0.05 + row * 0.56
                corners = [(x, y), (x + wide, y), (x + wide, y + 0.51), (x, y + 0.51)]
                pen.polygon([((px + lean * (py - 0.5)) * side, py * side) for px, py in corners], fill=255)

    return layer(draw, blur=rng.uniform(2, 5), side=SIDE)


def marble(rng: np.random.Generator) -> np.ndarray:
    """Polished stone with veins."""
    stone, vein = pick(
        rng,
        [("#f2f0ec", "#8b8d94"), ("#ece7df", "#b08d57"), ("#e9e4e6", "#a58a90"), ("#e4e8ea", "#6d7a84"),
         ("#3c4644", "#d5d8d2"), ("#2d2f36", "#c9a66b")],
    )  # fmt: skip
    stone, vein = rgb(stone, rng, 0.015), rgb(vein, rng, 0.02)
    cloud, other = noise(rng), noise(rng)
    lean = rng.uniform(-1.5, 1.5)
    fold = np.sin(rng.uniform(5, 9) * (X + lean * Y) + 1.9 * cloud)
    strong = np.exp(-((fold / 0.07) ** 2)) * step(other, -0.6, 0.9)
    thin = np.exp(-(((other - 0.3 * cloud) / 0.05) ** 2)) * 0.5
    picture = mix(stone, vein, np.clip(0.85 * strong + thin, 0, 1))
    return picture * (1 + 0.035 * other + 0.012 * noise(rng, "fine"))[..., None]


def brick(rng: np.random.Generator) -> np.ndarray:
    """A brick wall under a lamp, mortar between the bricks."""
    clay, mortar = pick(
        rng, [("#a4553f", "#c9bfb2"), ("#8c4a3a", "#8f867c"), ("#b86f50", "#d9cfc0"), ("#6e4a42", "#a0968c"),
              ("#d9d2c8", "#b4aca2"), ("#5b5553", "#8a8580")]
    )  # fmt: skip
    clay, mortar = rgb(clay, rng, 0.02), rgb(mortar, rng, 0.02)
    rows = rng.uniform(8, 13)
    y = Y * rows + rng.random()
    row = np.floor(y).astype(int)
    x = X * rows / rng.uniform(2.0, 2.5) + 0.5 * (row % 2) + rng.random()
    column = np.floor(x).astype(int)
    tones = 1 + 0.13 * rng.standard_normal((16, 12))
    tone = tones[row, column] * (1 + 0.05 * noise(rng, "fine") + 0.03 * noise(rng))
    wobble = 0.012 * noise(rng, "fine")
    gap = np.minimum(np.abs(y - np.round(y)), 2.2 * np.abs(x - np.round(x))) + wobble
    picture = mix(mortar * 0.92, clay, step(gap, 0.045, 0.085)) * tone[..., None]
    lamp = np.exp(-(((X - rng.uniform(0.25, 0.75)) / 0.5) ** 2) - ((Y - rng.uniform(0.0, 0.3)) / 0.6) ** 2)
    ledge = step(Y, 0.0, 0.008) if rng.random() < 0.5 else step(-Y, -rng.uniform(0.84, 0.9), -0.83)
    return picture * (0.62 + 0.55 * lamp)[..., None] * (0.45 + 0.55 * ledge)[..., None]


def kraft(rng: np.random.Generator) -> np.ndarray:
    """Brown wrapping paper with fibres and folds, often tied with string or taped."""
    paper = rgb(pick(rng, ["#c8a274", "#b98f60", "#d3b389", "#ad8559"]), rng, 0.02)
    fibres = noise(rng, "grain") if rng.random() < 0.5 else noise(rng, "grain").T
    tone = 1 + 0.022 * fibres + 0.03 * noise(rng) + 0.02 * noise(rng, "speck")
    for _ in range(rng.integers(2, 5)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35)
        distance = (X - 0.5) * np.cos(angle) + (Y - 0.5) * np.sin(angle) - offset
        tone = tone + 0.11 * np.exp(-((distance / 0.012) ** 2)) - 0.10 * np.exp(-(((distance - 0.018) / 0.014) ** 2))
        tone = tone + 0.04 * np.tanh(distance / 0.05) * pick(rng, [-1, 1])
    picture = paper * tone[..., None]
    return _tie(picture, rng) if rng.random() < 0.75 else picture


def _tie(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y, string = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.3), rng.random() < 0.6
    colour = pick(rng, [(246, 238, 220), (176, 52, 48), (70, 92, 74)]) if string else (236, 226, 200)

    def draw(pen, side):
        width = 7 if string else 44
        for shift, fill in ((3, (112, 82, 52)), (0, colour)):
            pen.line([(x * side + shift, 0), (x * side + shift, side)], fill=fill, width=width)
            if string:
                pen.line([(0, y * side + shift), (side, y * side + shift)], fill=fill, width=width)
                for lean in (-1, 1):
                    box = [(x - 0.05 + lean * 0.05) * side, (y - 0.04) * side, (x + 0.05 + lean * 0.05) * side,
                           (y + 0.035) * side]  # fmt: skip
                    pen.ellipse([value + shift for value in box], outline=fill, width=width)

    return painted(picture, draw)
