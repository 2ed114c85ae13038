"""Chair, lamp, phone, book."""

from adgen.shop.synthetic.drawing.sketch import Sketch, darker, lighter

WOOD = (176, 122, 74)
INK = (32, 33, 40)


def chair(s: Sketch) -> None:
    """A padded chair on wooden legs, seen a little from the side."""
    back = s.vary(0.06, 0.12)
    wood = darker(WOOD, s.vary(0.0, 0.4))
    for x0, x1, low in ((0.3, 0.27, 0.88), (0.74, 0.77, 0.88)):
        s.polygon([(x0 - 0.02, 0.6), (x0 + 0.03, 0.6), (x1 + 0.015, low), (x1 - 0.015, low)], darker(wood, 0.35), "none")
    s.box(0.22, back, 0.78, 0.6, shade="round", radius=0.13)
    s.line([(0.36, back + 0.1), (0.36, 0.5)], 0.01, darker(s.colour, 0.4))
    s.line([(0.64, back + 0.1), (0.64, 0.5)], 0.01, darker(s.colour, 0.4))
    for x0, x1 in ((0.2, 0.14), (0.8, 0.86)):
        s.polygon([(x0 - 0.03, 0.68), (x0 + 0.035, 0.68), (x1 + 0.02, 0.98), (x1 - 0.02, 0.98)], wood)
    s.curve([(0.2, 0.53), (0.5, 0.51), (0.8, 0.53), (0.9, 0.64), (0.86, 0.72), (0.5, 0.74), (0.14, 0.72), (0.1, 0.64)])
    s.line([(0.13, 0.685), (0.5, 0.705), (0.87, 0.685)], 0.014, darker(s.colour, 0.4), True)


def lamp(s: Sketch) -> None:
    """A table lamp, its shade in the product's skin."""
    shade_top, base = s.vary(0.16, 0.22), s.vary(0.13, 0.19)
    s.ellipse(0.5 - base - 0.06, 0.89, 0.5 + base + 0.06, 0.98, darker(s.trim, 0.25))
    s.curve(
        [(0.47, 0.5), (0.53, 0.5), (0.53, 0.58), (0.5 + base, 0.74), (0.5 + base * 0.8, 0.9), (0.5, 0.94),
         (0.5 - base * 0.8, 0.9), (0.5 - base, 0.74), (0.47, 0.58)],
        s.trim,
        "round",
    )  # fmt: skip
    s.ellipse(0.12, 0.5, 0.88, 0.6, (255, 226, 150), "none")
    s.polygon([(0.5 - shade_top, 0.06), (0.5 + shade_top, 0.06), (0.9, 0.55), (0.1, 0.55)], shade="round")
    s.ellipse(0.5 - shade_top, 0.035, 0.5 + shade_top, 0.085, lighter(s.colour, 0.4), "none")
    s.line([(0.1, 0.55), (0.9, 0.55)], 0.022, darker(s.colour, 0.3))


def phone(s: Sketch) -> None:
    """A phone's back next to its front."""
    tall = s.vary(0.02, 0.06)
    s.box(0.4, 0.1 + tall, 0.83, 0.98, INK, "soft", 0.06)
    s.box(0.42, 0.12 + tall, 0.81, 0.96, lighter(s.colour, 0.55), "glass", 0.045)
    s.box(0.46, 0.24, 0.77, 0.29, (255, 255, 255), "none", 0.02)
    for row in range(3):
        for column in range(3):
            x, y = 0.475 + column * 0.105, 0.6 + row * 0.105
            s.box(x, y, x + 0.07, y + 0.07, (s.trim, s.colour, (255, 255, 255))[(row + column) % 3], "none", 0.016)
    s.box(0.15, 0.02, 0.59, 0.88 - tall, darker(s.colour, 0.35), "none", 0.065)
    s.box(0.16, 0.03, 0.58, 0.87 - tall, shade="glass", radius=0.058)
    s.box(0.19, 0.06, 0.36, 0.25, darker(s.colour, 0.3), "soft", 0.04)
    for x, y in ((0.232, 0.11), (0.318, 0.11), (0.232, 0.2)):
        s.ellipse(x - 0.034, y - 0.034, x + 0.034, y + 0.034, INK, "ball")
        s.ellipse(x - 0.014, y - 0.014, x + 0.014, y + 0.014, (70, 84, 130), "none")


def book(s: Sketch) -> None:
    """A closed book standing half turned, pages to the right."""
    lean = s.vary(0.03, 0.07)
    s.polygon([(0.74, 0.08 + lean), (0.88, 0.05), (0.88, 0.9), (0.74, 0.95)], (240, 232, 214), "none")
    for line in range(5):
        x = 0.765 + line * 0.025
        s.line([(x, 0.08 + lean * 0.7), (x, 0.93)], 0.004, (196, 184, 160))
    s.polygon([(0.12, 0.05), (0.26, 0.02), (0.9, 0.03), (0.76, 0.07 + lean)], darker(s.colour, 0.25), "none")
    s.polygon([(0.12, 0.05), (0.77, 0.07 + lean), (0.77, 0.97), (0.12, 0.93)])
    s.polygon([(0.12, 0.05), (0.2, 0.0525 + lean * 0.12), (0.2, 0.935), (0.12, 0.93)], darker(s.colour, 0.3), "none")
    s.box(0.29, 0.2, 0.68, 0.46, s.trim, "soft", 0.02)
    ink = darker(s.trim, 0.6) if sum(s.trim) > 380 else lighter(s.trim, 0.8)
    s.line([(0.34, 0.28), (0.63, 0.28)], 0.028, ink)
    s.line([(0.4, 0.37), (0.57, 0.37)], 0.016, ink)
    s.polygon([(0.62, 0.09), (0.68, 0.092), (0.68, 0.2), (0.65, 0.17), (0.62, 0.2)], (200, 60, 60), "none")
