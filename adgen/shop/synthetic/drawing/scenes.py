"""Backgrounds that are a place: neon night, beach, botanical, pastel shapes, snow. Each returns (SIDE, SIDE, 3)."""

import math

import numpy as np
from PIL import ImageDraw

from adgen.shop.synthetic.drawing.texture import SIDE, X, Y, bytes_of, layer, mix, noise, painted, pick, rgb, step


def neon(rng: np.random.Generator) -> np.ndarray:
    """A dark room with glowing tubes, mirrored in the floor."""
    night = rgb(pick(rng, ["#140c2c", "#0b1230", "#1d0b26", "#081a24", "#16161c"]), rng, 0.012)
    picture = night * (0.6 + 0.9 * np.exp(-(((Y - 0.5) / 0.35) ** 2)))[..., None] * (1 + 0.06 * noise(rng))[..., None]
    for _ in range(rng.integers(2, 5)):
        colour = rgb(pick(rng, ["#ff2d95", "#18e0ff", "#a64bff", "#ffb02e", "#35ff8c", "#ff4040"]))
        points, width = _tube(rng), rng.uniform(0.01, 0.018)

        def draw(pen, side, points=points, width=width):
            pen.line([(x * side, y * side) for x, y in points], fill=255, width=max(1, round(width * side)), joint="curve")

        core, halo = layer(draw), layer(draw, blur=9, side=SIDE // 4)
        picture = picture + colour * (2.4 * halo)[..., None] + (0.35 + 0.65 * colour) * core[..., None]
    floor = rng.uniform(0.72, 0.82)
    rows = np.clip((2 * floor * SIDE - np.arange(SIDE)).astype(int), 0, SIDE - 1)
    mirrored = picture[rows] * (0.4 + 0.03 * noise(rng, "fine"))[..., None]
    return np.where((floor < Y)[..., None], mirrored + 0.02, picture)


def _tube(rng: np.random.Generator) -> list[tuple[float, float]]:
    shape, x, y = rng.integers(4), rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.55)
    if shape == 0:  # a ring
        radius = rng.uniform(0.12, 0.33)
        return [(x + radius * math.cos(a / 20 * math.pi), y + radius * math.sin(a / 20 * math.pi)) for a in range(41)]
    if shape == 1:  # a straight tube
        angle, half = pick(rng, [0.0, math.pi / 2, 0.8, -0.8]), rng.uniform(0.2, 0.45)
        return [(x + t * half * math.cos(angle), y + t * half * math.sin(angle)) for t in (-1, 1)]
    if shape == 2:  # a wave
        height, length, phase = rng.uniform(0.03, 0.09), rng.uniform(3, 8), rng.uniform(0, 6)
        return [(i / 30, y + height * math.sin(phase + length * i / 30 * math.pi)) for i in range(31)]
    wide, tall = rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.3)
    return [(x - wide, y + tall), (x, y - tall), (x + wide, y + tall), (x - wide, y + tall)]


def beach(rng: np.random.Generator) -> np.ndarray:
    """Sky, sea and sand, with foam where they meet."""
    top, low, sea, sand = pick(
        rng, [("#5fb4ea", "#d8effa", "#1f9fb5", "#ead3a4"), ("#87c9f2", "#fdf3df", "#35b3b0", "#f0dcb4"),
              ("#f08a6c", "#fbd9a0", "#3f7f9c", "#d9b98a"), ("#8fa9c9", "#f4d9d0", "#4f93a8", "#e2c9a2")]
    )  # fmt: skip
    horizon, shore = rng.uniform(0.3, 0.42), rng.uniform(0.56, 0.66)
    cloud, fine = noise(rng), noise(rng, "fine")
    sky = mix(rgb(top, rng), rgb(low, rng), step(Y, 0.0, horizon))
    sky = mix(sky, (1.0, 1.0, 1.0), 0.55 * step(cloud + 0.4 * noise(rng, "grain"), 0.5, 2.0))
    sun_x, sun_y = rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.25)
    sky = mix(sky, (1.0, 0.97, 0.82), np.exp(-(((X - sun_x) ** 2 + (Y - sun_y) ** 2) / 0.006)))
    water = rgb(sea, rng)
    water = mix(water * 0.82, water * 1.2 + 0.08, step(Y, horizon, shore))
    water = water + (0.05 * np.sin(150 * Y + 2.4 * cloud) * (fine > 0))[..., None]
    waves = 0.018 * np.sin(X * rng.uniform(5, 9) + rng.uniform(0, 6)) + 0.012 * np.sin(X * 17 + rng.uniform(0, 6))
    edge = Y - shore - waves
    beach_sand = rgb(sand, rng) * (1 + 0.045 * fine + 0.03 * noise(rng, "speck") + 0.03 * cloud)[..., None]
    beach_sand = beach_sand * (1 - 0.2 * np.exp(-((edge / 0.045) ** 2)))[..., None]  # wet near the water
    picture = np.where((horizon > Y)[..., None], sky, mix(water, beach_sand, step(edge, -0.004, 0.006)))
    return mix(picture, (1.0, 1.0, 1.0), 0.85 * np.exp(-(((edge + 0.01) / 0.012) ** 2)) * (fine > -1.1))


def botanical(rng: np.random.Generator) -> np.ndarray:
    """Leaves crowding in from the sides on green."""
    ground = rgb(pick(rng, ["#24402f", "#3c5c41", "#dbe7d2", "#8fae8b", "#b9cfae", "#1d3430"]), rng, 0.02)
    light = np.exp(-((np.hypot(X - 0.5, Y - 0.42) / 0.5) ** 2))
    picture = ground * (0.78 + 0.38 * light + 0.04 * noise(rng))[..., None]
    count = int(rng.integers(18, 28))
    greens = [pick(rng, ["#2f6b3c", "#4b8b4a", "#1f5138", "#7fae5a", "#5f9a78", "#3a7d55"]) for _ in range(count)]

    def draw(pen, side):
        for index, green in enumerate(greens):
            angle = rng.uniform(0, 2 * math.pi)
            reach = rng.uniform(0.42, 0.66) + 0.1 * (index < count // 2)
            root = 0.5 + reach * math.cos(angle), 0.5 + reach * math.sin(angle)
            aim = math.atan2(0.5 - root[1], 0.5 - root[0]) + rng.uniform(-0.9, 0.9)
            tone = rgb(green, rng) * (0.62 + 0.5 * index / count)
            _leaf(pen, side, root, aim, rng.uniform(0.2, 0.36), rng.uniform(0.2, 0.34), tone)

    return painted(picture, draw)


def _leaf(pen: ImageDraw.ImageDraw, side: int, root: tuple, aim: float, length: float, fat: float, tone) -> None:
    along, across = (math.cos(aim), math.sin(aim)), (-math.sin(aim), math.cos(aim))

    def at(t, w):
        return tuple((root[k] + length * (t * along[k] + w * across[k])) * side for k in (0, 1))

    steps = [i / 12 for i in range(13)]
    widths = [fat * math.sin(math.pi * t**0.8) for t in steps]
    upper, lower = zip(steps, widths, strict=True), zip(steps, widths, strict=True)
    middle = [at(t, 0) for t in steps]
    pen.polygon(middle + [at(t, w) for t, w in upper][::-1], fill=bytes_of(tone))
    pen.polygon(middle + [at(t, -w) for t, w in lower][::-1], fill=bytes_of(tone * 0.84))
    vein = bytes_of(tone * 1.25 + 0.04)
    pen.line([at(0, 0), at(0.95, 0)], fill=vein, width=2)
    for t in (0.25, 0.45, 0.65):
        for sign in (-1, 1):
            pen.line([at(t, 0), at(t + 0.15, sign * fat * 0.75 * math.sin(math.pi * (t + 0.1)))], fill=vein, width=1)


def pastel(rng: np.random.Generator) -> np.ndarray:
    """Flat pastel shapes behind a podium."""
    palette = [rgb(code, rng, 0.02) for code in _PASTELS[rng.integers(len(_PASTELS))]]
    order = rng.permutation(5)
    wall, floor, *others = (palette[i] for i in order)
    horizon = rng.uniform(0.66, 0.76)
    picture = mix(wall, floor, step(Y, horizon, horizon + 0.006))
    shapes = [(int(rng.integers(5)), rng.uniform(0.05, 0.95), rng.uniform(0.08, 0.6), rng.uniform(0.1, 0.26))
              for _ in range(rng.integers(4, 8))]  # fmt: skip

    def draw(pen, side):
        for index, (shape, x, y, size) in enumerate(shapes):
            _shape(pen, shape, x * side, y * side, size * side, bytes_of(others[index % 3]), rng.uniform(0, 6.3))
        top, half = rng.uniform(0.82, 0.87) * side, rng.uniform(0.3, 0.4) * side
        pen.rectangle([side / 2 - half, top, side / 2 + half, side], fill=bytes_of(others[0] * 0.9))
        pen.ellipse([side / 2 - half, top - side * 0.055, side / 2 + half, top + side * 0.055], fill=bytes_of(others[0]))

    return painted(picture, draw) * (1.03 - 0.1 * X * Y)[..., None]


_PASTELS = [
    ["#f9d5d8", "#fbe7c6", "#c9e4de", "#d8cdf0", "#f7c9a9"],
    ["#c6def1", "#f2c6de", "#faedcb", "#dbcdf0", "#c9e4de"],
    ["#ffd6ba", "#fff1e6", "#bee1e6", "#cddafd", "#fad2e1"],
    ["#e2ece9", "#f0efeb", "#dfb8b0", "#b5c9c3", "#f6d9c0"],
]


def _shape(pen: ImageDraw.ImageDraw, shape: int, x: float, y: float, r: float, fill: tuple, turn: float) -> None:
    box = [x - r, y - r, x + r, y + r]
    if shape == 0:
        pen.ellipse(box, fill=fill)
    elif shape == 1:
        pen.ellipse(box, outline=fill, width=round(r * 0.28))
    elif shape == 2:  # an arch down to the floor
        pen.pieslice(box, 180, 360, fill=fill)
        pen.rectangle([x - r, y, x + r, y + 1.6 * r], fill=fill)
    else:
        corners = 3 if shape == 3 else 4
        angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
        pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill=fill)


def snow(rng: np.random.Generator) -> np.ndarray:
    """Drifts under a pale sky, firs far off, flakes in the air."""
    top, low = pick(rng, [("#9fc3e6", "#eaf3fb"), ("#b9c4d6", "#eef1f5"), ("#c6b8dc", "#f6e9ee"), ("#6d93bd", "#d5e6f3")])
    picture = mix(rgb(top, rng, 0.02), rgb(low, rng, 0.02), step(Y, 0.0, 0.6))
    horizon = rng.uniform(0.5, 0.62)
    firs = [(rng.uniform(-0.05, 1.05), rng.uniform(0.1, 0.32)) for _ in range(rng.integers(5, 14))]

    def draw(pen, side):
        for x, tall in firs:
            for tier in range(4):
                base = horizon + 0.03 - tall * 0.22 * tier
                half, peak = tall * (0.3 - 0.06 * tier), base - tall * 0.36
                pen.polygon([((x - half) * side, base * side), ((x + half) * side, base * side), (x * side, peak * side)], fill=255)

    picture = mix(picture, rgb(pick(rng, ["#5c7f93", "#6d8aa8", "#47685f", "#8aa4b8"]), rng), 0.8 * layer(draw))
    for depth in range(3):
        level = horizon + 0.13 * depth + 0.03 * np.sin(X * rng.uniform(3, 8) + rng.uniform(0, 6))
        shade = 0.90 + 0.035 * depth - 0.5 * np.clip(0.2 - (Y - level), 0, 0.2) * (depth > 0)
        drift = np.array([0.95, 0.975, 1.0], np.float32) * (shade + 0.008 * noise(rng, "fine"))[..., None]
        picture = mix(picture, drift, step(Y - level, 0.0, 0.01))
    flakes = rng.uniform(0, 1, (int(rng.integers(50, 130)), 3))

    def fall(pen, side):
        for x, y, size in flakes:
            r = (0.003 + 0.011 * size**3) * side
            pen.ellipse([x * side - r, y * side - r, x * side + r, y * side + r], fill=int(150 + 105 * (1 - size)))

    return mix(picture, (1.0, 1.0, 1.0), 0.9 * layer(fall, blur=0.6))
