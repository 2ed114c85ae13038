"""Sneaker, hat, watch, t-shirt, handbag, backpack, headphones, umbrella."""

import math

from adgen.shop.synthetic.drawing.sketch import Sketch, darker, lighter

CREAM = (246, 240, 228)
GOLD = (212, 170, 92)
INK = (36, 36, 44)


def sneaker(s: Sketch) -> None:
    """A low shoe seen from its side, toe to the right."""
    sole = s.vary(0.075, 0.11)
    s.curve(
        [(0.06, 0.36), (0.14, 0.3), (0.3, 0.32), (0.36, 0.27), (0.46, 0.29), (0.6, 0.46), (0.82, 0.54), (0.96, 0.64),
         (0.97, 0.76), (0.5, 0.79), (0.04, 0.78), (0.03, 0.55)]
    )  # fmt: skip
    s.curve([(0.8, 0.545), (0.96, 0.63), (0.975, 0.77), (0.78, 0.78), (0.74, 0.66)], s.trim)
    s.curve([(0.06, 0.37), (0.14, 0.31), (0.17, 0.46), (0.15, 0.77), (0.04, 0.77), (0.03, 0.55)], s.trim)
    s.curve([(0.1, 0.35), (0.16, 0.3), (0.31, 0.31), (0.37, 0.27), (0.42, 0.3), (0.3, 0.38), (0.16, 0.4)], INK, "none")
    s.box(0.02, 0.76, 0.985, 0.76 + sole, CREAM, "soft", 0.04)
    s.box(0.03, 0.755 + sole * 0.68, 0.98, 0.76 + sole, darker(s.trim, 0.2), "none", 0.02)
    for step in range(4):
        x, y = 0.43 + step * 0.07, 0.345 + step * 0.052
        s.line([(x - 0.045, y + 0.075), (x + 0.05, y + 0.015)], 0.022, CREAM)
    for vent in range(3):
        s.ellipse(0.3 + vent * 0.07, 0.6, 0.33 + vent * 0.07, 0.63, darker(s.colour, 0.5), "none")


def hat(s: Sketch) -> None:
    """A hat with a wide brim and a band."""
    crown, brim = s.vary(0.2, 0.27), s.vary(0.1, 0.14)
    s.ellipse(0.02, 0.64 - brim, 0.98, 0.66 + brim, darker(s.colour, 0.14))
    s.curve(
        [(0.2, 0.64), (0.24, 0.4), (0.32, 0.5 - crown), (0.45, 0.5 - crown - 0.03), (0.5, 0.53 - crown),
         (0.56, 0.5 - crown - 0.03), (0.68, 0.5 - crown), (0.76, 0.4), (0.8, 0.64), (0.5, 0.71)],
        shade="round",
    )  # fmt: skip
    s.curve([(0.205, 0.56), (0.5, 0.63), (0.795, 0.56), (0.8, 0.65), (0.5, 0.715), (0.2, 0.65)], s.trim, "round")


def watch(s: Sketch) -> None:
    """A wrist watch, its strap in the product's skin."""
    wide, hour, minute = s.vary(0.13, 0.17), s.vary(0, 6.28), s.vary(0, 6.28)
    s.box(0.5 - wide, 0.01, 0.5 + wide, 0.4, shade="round", radius=0.04)
    s.box(0.5 - wide, 0.6, 0.5 + wide, 0.99, shade="round", radius=0.04)
    for y in (0.84, 0.89, 0.94):
        s.ellipse(0.488, y - 0.01, 0.512, y + 0.014, darker(s.colour, 0.5), "none")
    metal = GOLD if s.rng.random() < 0.5 else (196, 202, 210)
    s.box(0.77, 0.465, 0.83, 0.535, metal, "soft", 0.015)
    s.ellipse(0.21, 0.21, 0.79, 0.79, metal, "ball")
    s.ellipse(0.26, 0.26, 0.74, 0.74, CREAM if sum(s.colour) < 480 else INK, "glass")
    ink = INK if sum(s.colour) < 480 else CREAM
    for mark in range(12):
        x, y = math.sin(mark * math.pi / 6), math.cos(mark * math.pi / 6)
        s.line([(0.5 + 0.19 * x, 0.5 + 0.19 * y), (0.5 + 0.215 * x, 0.5 + 0.215 * y)], 0.014, ink)
    s.line([(0.5, 0.5), (0.5 + 0.11 * math.sin(hour), 0.5 - 0.11 * math.cos(hour))], 0.022, ink)
    s.line([(0.5, 0.5), (0.5 + 0.17 * math.sin(minute), 0.5 - 0.17 * math.cos(minute))], 0.014, s.colour)


def t_shirt(s: Sketch) -> None:
    """A short-sleeved shirt, laid flat."""
    sleeve = s.vary(0.36, 0.44)
    for side in (1, -1):
        s.polygon(
            [(0.5 - side * x, y) for x, y in [(0.17, 0.1), (0.31, 0.15), (0.48, sleeve), (0.33, sleeve + 0.09), (0.24, 0.3)]],
            shade="cloth",
        )
    s.curve(
        [(0.33, 0.1), (0.4, 0.09), (0.5, 0.17), (0.6, 0.09), (0.67, 0.1), (0.76, 0.16), (0.755, 0.4), (0.77, 0.7),
         (0.765, 0.93), (0.5, 0.955), (0.235, 0.93), (0.23, 0.7), (0.245, 0.4), (0.24, 0.16)],
        shade="cloth",
    )  # fmt: skip
    s.line([(0.385, 0.085), (0.42, 0.15), (0.5, 0.185), (0.58, 0.15), (0.615, 0.085)], 0.028, darker(s.colour, 0.3), True)
    if s.rng.random() < 0.5:
        s.box(0.56, 0.32, 0.68, 0.45, darker(s.colour, 0.12), "none", 0.012)
        s.line([(0.56, 0.34), (0.68, 0.34)], 0.01, lighter(s.colour, 0.4))


def handbag(s: Sketch) -> None:
    """A handbag with two handles and a clasp."""
    top, spread = s.vary(0.36, 0.44), s.vary(0.02, 0.06)
    s.arc(0.27, 0.04, 0.73, top + 0.4, 180, 360, 0.04, darker(s.trim, 0.3))
    s.arc(0.31, 0.11, 0.69, top + 0.4, 180, 360, 0.04, s.trim)
    s.curve(
        [(0.13 + spread, top), (0.5, top - 0.02), (0.87 - spread, top), (0.95, 0.84), (0.9, 0.93), (0.5, 0.95),
         (0.1, 0.93), (0.05, 0.84)]
    )  # fmt: skip
    s.curve([(0.13 + spread, top), (0.5, top - 0.02), (0.87 - spread, top), (0.8, 0.62), (0.5, 0.68), (0.2, 0.62)], s.trim)
    s.ellipse(0.445, 0.6, 0.555, 0.71, GOLD, "ball")
    for x in (0.29, 0.71):
        s.ellipse(x - 0.025, top + 0.01, x + 0.025, top + 0.06, GOLD, "ball")


def backpack(s: Sketch) -> None:
    """A backpack seen from the front."""
    s.ring(0.4, 0.02, 0.6, 0.2, 0.035, darker(s.trim, 0.25))
    for side in (-1, 1):
        s.box(0.5 + side * 0.37 - 0.06, 0.52, 0.5 + side * 0.37 + 0.06, 0.88, darker(s.colour, 0.3), "soft", 0.05)
    s.curve(
        [(0.16, 0.45), (0.2, 0.2), (0.36, 0.1), (0.64, 0.1), (0.8, 0.2), (0.84, 0.45), (0.85, 0.86), (0.78, 0.95),
         (0.5, 0.965), (0.22, 0.95), (0.15, 0.86)],
        shade="round",
    )  # fmt: skip
    s.line([(0.19, 0.42), (0.24, 0.25), (0.5, 0.17), (0.76, 0.25), (0.81, 0.42)], 0.014, darker(s.colour, 0.45), True)
    s.box(0.25, s.vary(0.52, 0.58), 0.75, 0.9, s.trim, "soft", 0.06)
    s.line([(0.29, 0.65), (0.71, 0.65)], 0.014, darker(s.trim, 0.4))
    s.box(0.69, 0.65, 0.71, 0.73, GOLD, "none", 0.01)
    s.box(0.43, 0.33, 0.57, 0.42, s.trim, "soft", 0.02)


def headphones(s: Sketch) -> None:
    """Headphones with their band over the top."""
    band = s.vary(0.06, 0.085)
    s.arc(0.12, 0.06, 0.88, 0.94, 180, 360, band, darker(s.colour, 0.12))
    s.arc(0.135, 0.075, 0.865, 0.925, 200, 300, band * 0.28, lighter(s.colour, 0.4))
    s.arc(0.27, 0.065, 0.73, 0.5, 215, 325, band * 0.75, s.trim)
    for side in (-1, 1):
        x = 0.5 + side * 0.355
        s.box(x - 0.035, 0.4, x + 0.035, 0.56, (176, 182, 190), "round", 0.02)
        inner = x - side * 0.1
        s.box(min(inner, x), 0.5, max(inner, x), 0.9, INK, "round", 0.05)
        s.box(x - 0.1 + side * 0.03, 0.47, x + 0.1 + side * 0.03, 0.93, shade="round", radius=0.09)
        s.ellipse(x - 0.05 + side * 0.03, 0.62, x + 0.05 + side * 0.03, 0.78, s.trim, "ball")


def umbrella(s: Sketch) -> None:
    """An open umbrella with a hooked handle."""
    wood = (142, 96, 58)
    s.line([(0.5, 0.08), (0.5, 0.9)], 0.026, darker(wood, 0.1))
    s.arc(0.5 - 0.013, 0.8, 0.66, 0.98, 0, 180, 0.035, wood)
    depth = s.vary(0.52, 0.58)
    top = [(0.5 + 0.48 * math.cos(a), depth - (depth - 0.1) * math.sin(a)) for a in [math.pi * i / 24 for i in range(25)]]
    hem = []
    for fold in range(6):
        x = 0.02 + fold * 0.16
        hem += [(x, depth), (x + 0.04, depth - 0.032), (x + 0.08, depth - 0.042), (x + 0.12, depth - 0.032)]
    s.polygon(top + hem, shade="round")
    for share in (-0.32, -0.16, 0.0, 0.16, 0.32):
        s.line([(0.5, 0.1), (0.5 + share * 0.75, 0.26), (0.5 + share, depth - 0.01)], 0.009, darker(s.colour, 0.4), True)
    s.line([(0.5, 0.04), (0.5, 0.1)], 0.024, s.trim)
