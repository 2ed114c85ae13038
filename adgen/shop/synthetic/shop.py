"""One synthetic shop: what its rows are called, where its pictures lie, and the drawing of one of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adgen.shop.synthetic.drawing.backgrounds import set_on_background
from adgen.shop.synthetic.drawing.products import draw_cutout, share_of_frame
from adgen.shop.synthetic.draws import key_for
from adgen.shop.synthetic.styles import TEN, StyleSet

FILES_PER_FOLDER = 1000
JPEG_QUALITY = 90
PNG_LEVEL = 3  # a quarter larger than the smallest, in half the time


@dataclass(frozen=True)
class ProductLook:
    """A product's number, and what its picture shows."""

    product: int
    kind: str
    colour: str
    pattern: str
    style: str
    photographed: int
    """Number of its photographed cut-out; -1: it is drawn."""

    @property
    def image(self) -> str:
        return _path("images", self.product, ".jpg")

    @property
    def cutout(self) -> str:
        return _path("cutouts", self.product, ".png")


@dataclass(frozen=True)
class ReferenceLook(ProductLook):
    """The creative that a user would like of a product; `turn` counts that user's pairs."""

    user: int
    turn: int

    @property
    def image(self) -> str:
        return _path("references", self.user, f"-{self.turn}.jpg")


@dataclass(frozen=True)
class Shop:
    """One synthetic shop's settings: all that its drawing processes need to know."""

    dest: Path
    seed: int
    split: str | None
    num_users: int
    num_products: int
    num_pairs: int
    num_references: int
    side: int
    styles: StyleSet = TEN
    words: str = "shop"
    clicks: tuple[int, int] = (8, 24)
    """Fewest and most of a user."""

    @property
    def name(self) -> str:
        return f"{self.split or 'shop'}{self.seed}"

    def user_id(self, user: int) -> str:
        return f"{self.name}-u{user:07d}"

    def product_id(self, product: int) -> str:
        return f"{self.name}-p{product:07d}"

    def generator(self, use: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([key_for(use, self.seed, self.split), *numbers])

    def rounds(self, total: int, users: np.ndarray) -> np.ndarray:
        """How many of `total` rows each user has when every user gets one before anyone gets the next."""
        return total // self.num_users + (users < total % self.num_users)

    def draw_product(self, look: ProductLook) -> tuple[float, int]:
        """Write a product's cut-out and picture; (its share of the frame, bytes of both)."""
        own = self.generator("cutout", look.product)
        if look.photographed >= 0:
            cutout = self.styles.photographed_cutout(look.photographed, self.side, own)
        else:
            cutout = draw_cutout(look.kind, look.colour, look.pattern, self.side, own)
        background = self.styles.background(look.style, self.side, self.generator("background", look.product))
        set_on_background(cutout, background).save(self._room_for(look.image), quality=JPEG_QUALITY)
        cutout.save(self._room_for(look.cutout), compress_level=PNG_LEVEL)
        return share_of_frame(cutout), sum((self.dest / path).stat().st_size for path in (look.image, look.cutout))

    def draw_reference(self, look: ReferenceLook) -> int:
        """Write a reference creative: the product exactly as in its cut-out, on a new background; its bytes."""
        background = self.styles.background(look.style, self.side, self.generator("reference", look.user, look.product))
        path = self._room_for(look.image)
        with Image.open(self.dest / look.cutout) as cutout:  # lossless, and read faster than drawn again
            set_on_background(cutout, background).save(path, quality=JPEG_QUALITY)
        return path.stat().st_size

    def _room_for(self, path: str) -> Path:
        full = self.dest / path
        full.parent.mkdir(parents=True, exist_ok=True)
        return full


def _path(folder: str, number: int, ending: str) -> str:
    return f"{folder}/{number // FILES_PER_FOLDER:04d}/{number:07d}{ending}"
