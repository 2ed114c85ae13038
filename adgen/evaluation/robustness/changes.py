"""Changes to a picture that leave its background what it is: by these a background's score should hardly move."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from adgen.images import product_box
from adgen.shop.synthetic.drawing.backgrounds import set_on_background


class Scene(NamedTuple):
    """A background, and two products that may stand on it; frames of one size."""

    background: Image.Image
    cutout: Image.Image
    other: Image.Image
    style: str | None = None
    """What the background is one of; None where nobody knows."""

    def shown(self) -> Image.Image:
        """The picture that changes are measured from."""
        return set_on_background(self.cutout, self.background)


class Change(NamedTuple):
    """`make` draws what it needs from the generator that it is given, so that a scene's change is always the same."""

    name: str
    level: str
    make: Callable[[Scene, np.random.Generator], Image.Image]


def other_product(scene: Scene, rng: np.random.Generator) -> Image.Image:
    return set_on_background(scene.other, scene.background)


def nothing_set(scene: Scene, rng: np.random.Generator) -> Image.Image:
    return scene.background


def resized(factor: float) -> Callable[[Scene, np.random.Generator], Image.Image]:
    """The product `factor` times as large, standing where it stood."""

    def make(scene: Scene, rng: np.random.Generator) -> Image.Image:
        left, top, right, bottom = _visible(scene.cutout)
        product = scene.cutout.crop((left, top, right, bottom))
        size = max(1, round(product.width * factor)), max(1, round(product.height * factor))
        frame = Image.new("RGBA", scene.cutout.size)
        frame.paste(product.resize(size, Image.Resampling.BICUBIC), (round((left + right - size[0]) / 2), bottom - size[1]))
        return set_on_background(frame, scene.background)

    return make


def moved(share: float) -> Callable[[Scene, np.random.Generator], Image.Image]:
    """The product a share of the frame aside and up or down, to where there is room for it."""

    def make(scene: Scene, rng: np.random.Generator) -> Image.Image:
        left, top, right, bottom = _visible(scene.cutout)
        width, height = scene.cutout.size
        x = -1 if left > width - right else 1
        y = -1 if top > height - bottom else 1
        frame = Image.new("RGBA", scene.cutout.size)
        frame.paste(scene.cutout, (x * round(share * width), y * round(share * height)))
        return set_on_background(frame, scene.background)

    return make


def cropped(share: float) -> Callable[[Scene, np.random.Generator], Image.Image]:
    """A window of `share` of each side, somewhere, at the old size."""

    def make(scene: Scene, rng: np.random.Generator) -> Image.Image:
        picture = scene.shown()
        width, height = (round(share * side) for side in picture.size)
        left, top = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
        return picture.crop((left, top, left + width, top + height)).resize(picture.size, Image.Resampling.BICUBIC)

    return make


def saved_as_jpeg(quality: int) -> Callable[[Scene, np.random.Generator], Image.Image]:
    def make(scene: Scene, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        scene.shown().save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return make


def relit(strength: float) -> Callable[[Scene, np.random.Generator], Image.Image]:
    """All values times 1 + or - `strength`, by a coin."""
    return _scaled(lambda sign: np.full(3, 1 + sign * strength))


def warmed(strength: float) -> Callable[[Scene, np.random.Generator], Image.Image]:
    """Red times 1 + or - `strength`, by a coin, and blue the other way."""
    return _scaled(lambda sign: np.array([1 + sign * strength, 1, 1 - sign * strength]))


def _scaled(gains: Callable[[int], np.ndarray]) -> Callable[[Scene, np.random.Generator], Image.Image]:
    def make(scene: Scene, rng: np.random.Generator) -> Image.Image:
        pixels = np.asarray(scene.shown(), np.float32) * gains(1 if rng.random() < 0.5 else -1)
        return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))

    return make


def _visible(cutout: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = product_box(cutout)
    return left, top, right + 1, bottom + 1


CHANGES: Sequence[Change] = (
    Change("other product", "", other_product),
    Change("no product set on it", "", nothing_set),
    *(Change("product's size", f"x {factor:g}", resized(factor)) for factor in (0.5, 0.75, 1.25)),
    *(Change("product's place", f"{share:.0%} of the frame", moved(share)) for share in (0.08, 0.16)),
    *(Change("crop", f"{share:.0%} of a side", cropped(share)) for share in (0.95, 0.85, 0.7)),
    *(Change("JPEG", f"quality {quality}", saved_as_jpeg(quality)) for quality in (90, 75, 50, 25)),
    *(Change("light", f"+- {strength:.0%}", relit(strength)) for strength in (0.05, 0.15)),
    *(Change("warmth", f"+- {strength:.0%}", warmed(strength)) for strength in (0.05, 0.15)),
)
"""In the order in which a table shows them."""
