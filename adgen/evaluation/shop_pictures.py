"""Pictures of the shop that creatives are compared with, and what networks see in them; each is read once, users click the same."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from adgen.errors import PairError
from adgen.evaluation.judges import Judges
from adgen.evaluation.pbs import pbs_features
from adgen.evaluation.pictures import as_pixels
from adgen.evaluation.similarity import background_features
from adgen.images import read_picture

PIXELS_SIDE = 48  # a multiple of the thumbnail that copies are looked for with
_REMEMBERED = 4096


Features = dict[str, Tensor]
"""Of a picture's background, by who judges: `pbs`, and `background` where the product is known and leaves some of it."""


class ShopPicture(NamedTuple):
    """Where a picture lies, and the cut-out of the product that it shows. Resolved URIs, or None."""

    image: str | None
    cutout: str | None = None


class Seen(NamedTuple):
    """What is kept of a picture."""

    pixels: Tensor
    """(3, PIXELS_SIDE, PIXELS_SIDE) in 0..1."""
    product: Tensor | None
    """Its product's mask, (PIXELS_SIDE, PIXELS_SIDE) in 0..1; None where nobody knows it."""
    features: Features


class ShopPictures:
    """Reads and sees pictures of the shop."""

    def __init__(self, judges: Judges, read: Callable[[str], bytes]):
        """read: bytes of a URI, or PairError."""
        self.judges, self.read = judges, read
        self.seen = lru_cache(_REMEMBERED)(self._seen)

    def open(self, picture: ShopPicture) -> Image.Image:
        """RGB. PairError: there is none, or it can't be read."""
        if not picture.image:
            raise PairError("missing_file", "the product has no picture")
        return read_picture(self.read(picture.image)).convert("RGB")

    def _seen(self, picture: ShopPicture) -> Seen:
        """PairError as `open`."""
        image = self.open(picture)
        mask = self._mask(picture, image)
        features = {"pbs": pbs_features(self.judges.pbs, [image])[0]} if self.judges.pbs else {}
        if self.judges.patches is not None and mask is not None:
            features |= background_of(self.judges, [image], [mask])[0]
        return Seen(as_pixels(image, PIXELS_SIDE), None if mask is None else as_pixels(mask, PIXELS_SIDE)[3], features)

    def _mask(self, picture: ShopPicture, image: Image.Image) -> Image.Image | None:
        """The product's cut-out where it lies in the picture's own frame, as in PAd1M; a cut-out of another size or shape does
        not say where the product is, nor does one that cannot be read."""
        if not picture.cutout:
            return None
        try:
            cutout = read_picture(self.read(picture.cutout))
        except PairError:
            return None
        return cutout if cutout.mode == "RGBA" and cutout.size == image.size else None


def background_of(judges: Judges, pictures: list[Image.Image], products: list[Image.Image]) -> list[Features]:
    """Of RGB pictures and their products (RGBA, same frames) {"background": feature (D,)}; {} where all is product."""
    pixels = torch.stack([as_pixels(picture, judges.patches.side) for picture in pictures])
    masks = torch.stack([as_pixels(product, judges.patches.side)[3] for product in products])
    features, there = background_features(judges.patches, pixels, masks)
    return [{"background": feature} if any_left else {} for feature, any_left in zip(features, there.tolist(), strict=True)]
