"""Mug, bottle, teapot, planter."""

from adgen.shop.synthetic.drawing.sketch import Sketch, darker, lighter

STEEL = (188, 194, 202)
SOIL = (74, 50, 36)


def mug(s: Sketch) -> None:
    """A mug with its handle to the right."""
    top, taper, handle = s.vary(0.16, 0.26), s.vary(0.0, 0.07), s.vary(0.055, 0.08)
    s.ring(0.56, top + 0.13, 0.97, top + 0.55, handle, darker(s.colour, 0.18))
    s.arc(0.575, top + 0.145, 0.955, top + 0.535, 190, 330, handle * 0.3, lighter(s.colour, 0.3))
    s.curve(
        [(0.08, top), (0.09 + taper, 0.78), (0.16 + taper, 0.9), (0.43, 0.925), (0.7 - taper, 0.9), (0.77 - taper, 0.78),
         (0.78, top)],
        shade="round",
    )  # fmt: skip
    s.ellipse(0.08, top - 0.07, 0.78, top + 0.07, lighter(s.colour, 0.35), "none")
    s.ellipse(0.105, top - 0.05, 0.755, top + 0.055, darker(s.colour, 0.45), "soft")
    s.ellipse(0.15, top - 0.01, 0.71, top + 0.055, (72, 42, 26), "none")


def bottle(s: Sketch) -> None:
    """A drinking bottle with a screw cap."""
    wide, shoulder = s.vary(0.19, 0.24), s.vary(0.28, 0.38)
    left, right = 0.5 - wide, 0.5 + wide
    s.box(0.41, 0.13, 0.59, 0.26, STEEL, "round")
    s.curve(
        [(0.41, 0.2), (0.59, 0.2), (0.6, shoulder - 0.08), (right, shoulder), (right, 0.6), (right - 0.005, 0.9),
         (right - 0.06, 0.97), (0.5, 0.975), (left + 0.06, 0.97), (left + 0.005, 0.9), (left, 0.6), (left, shoulder),
         (0.4, shoulder - 0.08)],
        shade="round",
    )  # fmt: skip
    s.box(0.37, 0.04, 0.63, 0.17, s.trim, "round", 0.03)
    for x in (0.43, 0.5, 0.57):
        s.line([(x, 0.07), (x, 0.145)], 0.012, darker(s.trim, 0.3))
    s.box(left, 0.9, right, 0.93, STEEL, "round")


def teapot(s: Sketch) -> None:
    """A round teapot, spout to the left."""
    low = s.vary(0.0, 0.04)
    s.ring(0.66, 0.36, 0.99, 0.74, 0.05, darker(s.colour, 0.25))
    s.curve(
        [(0.3, 0.58), (0.16, 0.5), (0.1, 0.34), (0.01, 0.3), (0.05, 0.25), (0.16, 0.27), (0.22, 0.4), (0.34, 0.44)],
        darker(s.colour, 0.08),
    )
    s.ellipse(0.19, 0.27 + low, 0.82, 0.87, shade="ball")
    s.box(0.33, 0.83, 0.68, 0.895, darker(s.colour, 0.35), "round", 0.03)
    s.curve([(0.33, 0.32 + low), (0.38, 0.245 + low), (0.5, 0.215 + low), (0.62, 0.245 + low), (0.67, 0.32 + low)], s.trim)
    s.ellipse(0.455, 0.13 + low, 0.555, 0.235 + low, darker(s.trim, 0.2), "ball")


def planter(s: Sketch) -> None:
    """A pot with a leafy plant."""
    green = (int(s.vary(40, 90)), int(s.vary(120, 160)), int(s.vary(60, 90)))
    for index in range(9):
        lean, height = (index - 4) / 4 + s.vary(-0.08, 0.08), s.vary(0.3, 0.52)
        tip, root = (0.5 + 0.42 * lean, 0.56 - height * (1 - 0.45 * abs(lean))), (0.5 + 0.12 * lean, 0.6)
        middle = ((tip[0] + root[0]) / 2, (tip[1] + root[1]) / 2)
        leaf = [root, (middle[0] - 0.075, middle[1] - 0.02), tip, (middle[0] + 0.075, middle[1] + 0.03)]
        s.curve(leaf, darker(green, 0.3) if index % 2 else green)
        s.line([root, middle, tip], 0.008, lighter(green, 0.35))
    taper = s.vary(0.06, 0.12)
    s.polygon([(0.24, 0.6), (0.76, 0.6), (0.76 - taper, 0.97), (0.24 + taper, 0.97)], shade="round")
    s.box(0.2, 0.54, 0.8, 0.655, shade="round", radius=0.02)
    s.box(0.2, 0.645, 0.8, 0.66, darker(s.colour, 0.4), "none")
