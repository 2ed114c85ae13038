"""Pictures of the shop that creatives are compared with, and what networks see in them; each is read once, users click the same."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from adgen.errors import PairError
from adgen.evaluation.pictures.backgrounds import background_features
from adgen.evaluation.pictures.pbs_features import pbs_features
from adgen.evaluation.pictures.tensors import as_pixels
from adgen.evaluation.scoring.networks import ScoringNetworks
from adgen.images import read_picture

PIXELS_SIDE = 48  # a multiple of the thumbnail that copies are looked for with
REMEMBERED = 4096  # pictures; more than a batch of creatives can ask for
_AT_ONCE = 32  # in one pass of a network


Features = dict[str, Tensor]
"""Of a picture's background, by network: `pbs`, and `background` where the product is known and leaves some of it."""


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
    """Reads and sees pictures of the shop, and remembers what it saw."""

    def __init__(self, networks: ScoringNetworks, read: Callable[[str], bytes]):
        """read: bytes of a URI, or PairError."""
        self.networks, self.read = networks, read
        self._known: OrderedDict[ShopPicture, Seen | PairError] = OrderedDict()

    def open(self, picture: ShopPicture) -> Image.Image:
        """RGB. PairError: there is none, or it can't be read."""
        if not picture.image:
            raise PairError("missing_file", "the product has no picture")
        return read_picture(self.read(picture.image)).convert("RGB")

    def look_at(self, pictures: Iterable[ShopPicture]) -> None:
        """See those that are not known yet, many in one pass of each network."""
        pictures = dict.fromkeys(pictures)
        for picture in self._known.keys() & pictures.keys():
            self._known.move_to_end(picture)  # or the new ones would push it out
        new = iter([picture for picture in pictures if picture not in self._known])
        while batch := list(islice(new, _AT_ONCE)):
            self._see(batch)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def seen(self, picture: ShopPicture) -> Seen:
        """PairError as `open`."""
        if picture not in self._known:
            self.look_at([picture])
        self._known.move_to_end(picture)
        found = self._known[picture]
        if isinstance(found, PairError):
            raise PairError(found.reason, found.detail)  # a new one: the old would hold on to every place that it was raised at
        return found

    def _see(self, pictures: Sequence[ShopPicture]) -> None:
        images: dict[ShopPicture, Image.Image] = {}
        for picture in pictures:
            try:
                images[picture] = self.open(picture)
            except PairError as error:
                self._known[picture] = error
        masks = {picture: mask for picture, image in images.items() if (mask := self._mask(picture, image)) is not None}
        features = self._features(images, masks)
        for picture, image in images.items():
            product = as_pixels(masks[picture], PIXELS_SIDE)[3] if picture in masks else None
            self._known[picture] = Seen(as_pixels(image, PIXELS_SIDE), product, features[picture])

    def _features(
        self, images: dict[ShopPicture, Image.Image], masks: dict[ShopPicture, Image.Image]
    ) -> dict[ShopPicture, Features]:
        found: dict[ShopPicture, Features] = {picture: {} for picture in images}
        if self.networks.pbs is not None and images:
            for picture, feature in zip(images, pbs_features(self.networks.pbs, images.values()), strict=True):
                found[picture]["pbs"] = feature
        if self.networks.patches is not None and masks:
            backgrounds = background_of(self.networks, [images[picture] for picture in masks], list(masks.values()))
            for picture, background in zip(masks, backgrounds, strict=True):
                found[picture] |= background
        return found

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


def background_of(networks: ScoringNetworks, pictures: list[Image.Image], products: list[Image.Image]) -> list[Features]:
    """Of RGB pictures and their products (RGBA, same frames) {"background": feature (D,)}; {} where all is product."""
    pixels = torch.stack([as_pixels(picture, networks.patches.side) for picture in pictures])
    masks = torch.stack([as_pixels(product, networks.patches.side)[3] for product in products])
    features, there = background_features(networks.patches, pixels, masks)
    return [{"background": feature} if any_left else {} for feature, any_left in zip(features, there.tolist(), strict=True)]
